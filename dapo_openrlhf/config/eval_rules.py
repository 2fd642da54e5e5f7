"""Rules about the settings of evaluations (standard library)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dapo_openrlhf.config.evaluation import NAMES
from dapo_openrlhf.config.section import COLDEST
from dapo_openrlhf.config.settings import Config


def impossible_evaluations(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting of evaluations that cannot be, or contradicts another."""
    section = config.eval
    if section.steps == 0 or section.steps < -1:
        yield f"eval.steps: {section.steps} is neither -1 nor a positive number of steps"
    yield from _impossible_sampling(config)
    for name, given in (("target", section.target), ("patience", section.patience)):
        if given is not None and (section.dataset is None or section.steps < 1):
            yield f"eval.{name}: {given:g} needs evaluations in the course of the run; set eval.dataset and eval.steps"
    names = [name for name, _ in section.named]
    yield from _impossible_names(names, [path for _, path in section.named])
    if unknown := [name for name in section.sets if name not in names]:
        known = f"eval.dataset has {', '.join(names)}" if names else "eval.dataset has none"
        yield f"eval.sets: there is no set {', '.join(unknown)}; {known}"
    if not unknown and len(set(names)) == len(names):
        yield from _impossible_best(config)


def _impossible_names(names: list[str], paths: list[str]) -> Iterator[str]:
    for name, path in zip(names, paths, strict=True):
        if not NAMES.fullmatch(name):
            yield (
                f"eval.dataset: {name!r} is no name of a set; it begins with a letter or digit and has letters, digits, _ . -, "
                f"at most 64; write ./{name}={path} if all of it is a path"
            )
        elif not path:
            yield f"eval.dataset: {name}= names no file; write {name}=PATH"
    for name, count in Counter(names).items():
        if count > 1:
            same = ", ".join(path for other, path in zip(names, paths, strict=True) if other == name)
            yield f"eval.dataset: {count} sets have the name {name} ({same}); give each one of its own, NAME=PATH"


def _impossible_sampling(config: Config) -> Iterator[str]:
    """Yield a sentence for each temperature and each length that cannot be; of those that sets share only one."""
    said: set[str] = set()
    temperatures = [("eval.temperature", config.eval.temperature)]
    rooms = [("eval.max_new_tokens", config.eval.max_new_tokens or 0)]
    for one in config.eval_sets:
        temperatures.append((one.setting("temperature"), one.temperature))
        rooms += [(one.room, one.max_new_tokens)] if one.room != "rollout.max_new_tokens" else []
    for setting, temperature in temperatures:
        if 0 < temperature < COLDEST and setting not in said:
            said.add(setting)
            yield (
                f"{setting}: {temperature:g} is colder than vLLM samples; use 0, which is greedy, or at least {COLDEST}"
            )
    for setting, room in rooms:
        if config.data.max_len <= room and setting not in said:
            said.add(setting)
            yield (
                f"{setting}: {room} leaves no room for a problem within data.max_len {config.data.max_len}; use less than "
                f"{config.data.max_len}, or raise data.max_len"
            )


def _impossible_best(config: Config) -> Iterator[str]:
    """Yield a sentence if the best checkpoint is to be known by a number that evaluations do not give."""
    key, sets = config.ckpt.best_metric_key, config.eval_sets
    if key in ("", "none"):
        return
    n = sets[0].n_samples_per_prompt if sets else config.eval.n_samples_per_prompt
    names = _numbers(n)
    for one in sets:
        if one.key:
            names += [f"{one.key}/accuracy", *(f"{one.key}/{number}" for number in _numbers(one.n_samples_per_prompt))]
    if key not in names:
        where = "these sets" if len(sets) > 1 else f"eval.n_samples_per_prompt {n}"
        yield (
            f"ckpt.best_metric_key: {key!r} is no number of an evaluation with {where}; use one of {', '.join(names)}, or "
            "none, or leave it empty for the accuracy" + (f" of {sets[0].name}, the first set" if len(sets) > 1 else "")
        )


def _numbers(n: int) -> list[str]:
    """The numbers of an evaluation with n responses to each problem."""
    ks = [1 << exponent for exponent in range(n.bit_length())]
    return [f"avg@{n}", *(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks if k > 1)]
