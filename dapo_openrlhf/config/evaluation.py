"""Settings of evaluations: the sets of held-out problems, and how each is sampled (pydantic)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import HOTTEST, PositiveInt, Section, listed
from dapo_openrlhf.config.yaml_text import mapping_of

NAMED = re.compile(r"([^/=]*)=(.*)", re.DOTALL)
"""A set with a name of its own before its path. What stands before = in a path with / is a part of that path."""
NAMES = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
"""Names of sets, which become parts of metrics' and files' names."""
_SUFFIXES = re.compile(r"(\.(jsonl|json|csv|parquet))?(\.gz)?$")


def _paths(value: object) -> object:
    """Names with their paths as ``NAME=PATH``, where a mapping is given; otherwise as :func:`listed`."""
    if isinstance(value, Mapping) and all(isinstance(path, str) for path in value.values()):
        return [f"{name}={path}" for name, path in value.items()]
    return listed(value)


class EvalSetSection(Section):
    max_samples: PositiveInt | None = None
    n_samples_per_prompt: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=HOTTEST)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: PositiveInt | None = None
    input_key: str | None = None
    label_key: str | None = None


class EvalSection(Section):
    dataset: Annotated[tuple[str, ...], BeforeValidator(_paths), Field(strict=False, min_length=1)] | None = None
    """Held-out problems, same format as the prompts; null switches evaluation off. Of several sets each has a name,
    ``NAME=PATH`` or that of its file, and numbers ``eval/NAME/...``; the first one's are the run's held-out accuracy."""
    split: str | None = None
    """The same as ``data.prompt_split`` for ``eval.dataset``."""
    sets: Annotated[dict[str, EvalSetSection], BeforeValidator(mapping_of)] = {}  # noqa: RUF012 - pydantic copies it
    """What single sets have of their own, by their names, in place of ``eval.*`` and ``data.*``: ``max_samples``,
    ``n_samples_per_prompt``, ``temperature``, ``top_p``, ``max_new_tokens``, ``input_key``, ``label_key``. On the command line
    ``--eval.sets.aime24.temperature 0.6``."""
    max_samples: PositiveInt | None = None
    """Number of problems to take from the beginning of the file (like OpenRLHF's setting of that name in ``data``);
    null takes all."""
    steps: int = -1
    """Evaluate also every this many rollout steps; -1 evaluates only before and after training. Training goes on
    meanwhile; only the next publication waits."""
    target: Annotated[float, Field(gt=0, le=1)] | None = None
    """End the run once an evaluation in its course gives this accuracy, or this value of ``ckpt.best_metric_key``."""
    patience: PositiveInt | None = None
    """End the run after this many evaluations in a row, none of them better than the best before."""
    n_samples_per_prompt: PositiveInt = 1
    """n: number of responses to each problem; accuracy is their mean (avg@n), pass@k and maj@k go up to n."""
    temperature: Annotated[float, Field(ge=0, le=HOTTEST)] = PAPER["eval.temperature"]
    """Sampling temperature of the evaluation, independent of the training's; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling of the evaluation; the paper uses 0.7."""
    max_new_tokens: PositiveInt | None = None
    """Longest response, in tokens; null takes ``rollout.max_new_tokens``."""

    @property
    def named(self) -> Iterator[tuple[str, str]]:
        """Name and path of each set, in order; a set without a name of its own has its file's."""
        for text in self.dataset or ():
            found = NAMED.fullmatch(text)
            yield (found[1], found[2]) if found else (name_of(text), text)

    @property
    def keys(self) -> tuple[str, ...]:
        """The sets' names as they stand in metrics: empty for a single set without a name of its own."""
        names = [name for name, _ in self.named]
        alone = len(names) == 1 and self.dataset is not None and NAMED.fullmatch(self.dataset[0]) is None
        return ("",) if alone else tuple(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """One set of problems with everything that holds for it."""

    name: str
    key: str
    """See :attr:`EvalSection.keys`."""
    path: str
    max_samples: int | None
    n_samples_per_prompt: int
    temperature: float
    top_p: float
    max_new_tokens: int
    input_key: str
    label_key: str | None
    own: frozenset[str]
    """The fields of which the set has a value of its own, in ``eval.sets``."""
    room: str
    """The name of the setting that ``max_new_tokens`` comes from."""

    def setting(self, field: str, section: str = "eval") -> str:
        """The name of the setting that a field's value comes from; ``section``: where those are that sets share."""
        return f"eval.sets.{self.name}.{field}" if field in self.own else f"{section}.{field}"

    def column(self, field: str) -> str:
        """The name of the setting of a column for messages: with the set's own as the remedy where the sets share one."""
        setting = self.setting(field, "data")
        return (
            setting
            if field in self.own or not self.key
            else f"{setting}, for this set alone eval.sets.{self.name}.{field}"
        )


def eval_sets(section: EvalSection, inherited: Mapping[str, Any]) -> Iterator[EvalSet]:
    """Yield the sets in order. ``inherited``: ``max_new_tokens`` of the rollouts, ``input_key`` and ``label_key`` of the data."""
    values = section.model_dump(include=set(EvalSetSection.model_fields))
    shared = {field: value for field, value in values.items() if value is not None}
    for key, (name, path) in zip(section.keys, section.named, strict=True):
        given = section.sets.get(name, EvalSetSection()).model_dump(exclude_none=True)
        place = (
            f"eval.sets.{name}" if "max_new_tokens" in given else "eval" if "max_new_tokens" in shared else "rollout"
        )
        yield EvalSet(
            name=name,
            key=key,
            path=path,
            own=frozenset(given),
            room=f"{place}.max_new_tokens",
            **{"max_samples": None, **inherited, **shared, **given},
        )


def names_of_sets(place: tuple[object, ...]) -> list[str]:
    """The names of the settings beside one at a place such as ``("eval", "sets", "aime24", "temprature")``; none elsewhere."""
    return (
        [f"eval.sets.{place[2]}.{field}" for field in EvalSetSection.model_fields]
        if place[:2] == ("eval", "sets")
        else []
    )


def name_of(path: str) -> str:
    """A name from a path: the file's or folder's without its suffix; of a set of the hub the repository's and its subset's."""
    if path.startswith("hf:"):
        repository, _, subset = path.removeprefix("hf:").partition(":")[0].partition("@")
        name = "-".join(filter(None, (repository.rpartition("/")[2], subset.replace("/", "-"))))
    else:
        name = _SUFFIXES.sub("", Path(path).name)
    safe = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "_.-") else "_" for sign in name)[:64]
    return safe if NAMES.fullmatch(safe) else f"_{safe}"[:64]
