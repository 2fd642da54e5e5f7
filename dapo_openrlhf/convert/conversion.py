"""What a conversion has found: settings of this project, and what the user must know (standard library)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dapo_openrlhf.config.evaluation import name_of
from dapo_openrlhf.config.yaml_text import value_of


class NotConvertible(ValueError):
    """The input is no command or configuration that can be translated; the message says why and what would be."""


@dataclass(slots=True)
class Conversion:
    """Settings by dotted name, and remarks, each of which begins with the name that the user wrote."""

    settings: dict[str, Any] = field(default_factory=dict)
    without_counterpart: list[str] = field(default_factory=list)
    """What was given and has no counterpart here, with the reason and what to do."""
    otherwise: list[str] = field(default_factory=list)
    """What behaves otherwise here."""

    def lacks(self, name: str, reason: str) -> None:
        """Remark that an option has no counterpart."""
        self.without_counterpart.append(f"{name}: {reason}")

    def differs(self, name: str, how: str) -> None:
        """Remark that something behaves otherwise."""
        self.otherwise.append(f"{name}: {how}")


def is_true(value: Any) -> bool:
    """Whether a value as it was written means yes."""
    return value is True or str(value).lower() in ("true", "1", "yes", "on")


def number(value: Any, *, name: str) -> float:
    """A value as a number. Raises ``NotConvertible`` that names the option."""
    read = value_of(value) if isinstance(value, str) else value
    if isinstance(read, bool) or not isinstance(read, int | float):
        raise NotConvertible(f"{name}: {value!r} is no number; write it out, because nothing of a script is run")
    return read


def whole(value: Any, *, name: str) -> int:
    """A value as a whole number. Raises ``NotConvertible`` that names the option."""
    read = number(value, name=name)
    if read != int(read):
        raise NotConvertible(f"{name}: {value!r} is no whole number")
    return int(read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How many GPUs train, and what runs on the others."""

    nodes: int
    per_node: int
    engines: int
    shared: bool

    @property
    def ranks(self) -> int:
        """Number of trainer ranks."""
        return self.nodes * self.per_node

    @property
    def settings(self) -> dict[str, int]:
        """It as settings."""
        return {
            "actor.num_nodes": self.nodes,
            "actor.num_gpus_per_node": self.per_node,
            "vllm.num_engines": self.engines,
        }


def divided(nodes: int, per_node: int, *, tensor_parallel: int) -> Placement:
    """GPUs that took turns divided between trainer and engines, about half each; a single one is shared.

    Raises ``NotConvertible`` where the GPUs do not suffice for one trainer rank and one engine.
    """
    total = nodes * per_node
    if total == 1:
        return Placement(nodes=1, per_node=1, engines=1, shared=True)
    train_nodes, train_gpus = (nodes // 2, per_node) if nodes > 1 else (1, per_node // 2)
    engines = (total - train_nodes * train_gpus) // tensor_parallel
    if not engines:
        raise NotConvertible(
            f"{total} GPUs do not hold a trainer rank beside an engine on {tensor_parallel} of them; give a smaller tensor "
            "parallel size"
        )
    return Placement(nodes=train_nodes, per_node=train_gpus, engines=engines, shared=False)


def place(conversion: Conversion, placement: Placement, *, name: str) -> None:
    """Write a placement into the settings, with a remark on what took turns before."""
    conversion.settings |= placement.settings
    if placement.shared:
        conversion.settings |= {
            "train.colocate_all": True,
            "vllm.gpu_memory_utilization": 0.4,
            "vllm.tensor_parallel_size": 1,
        }
        conversion.differs(
            name, "engine and trainer share the GPU and both stay in memory: vllm.gpu_memory_utilization 0.4"
        )
    else:
        conversion.differs(
            name,
            f"engines and trainer run at once on GPUs of their own, instead of taking turns: {placement.ranks} train, "
            f"{placement.engines} engines generate; `dapo-openrlhf plan` says which division is fastest",
        )


def with_names(paths: Sequence[str]) -> list[str]:
    """Sets of held-out problems, each with a name of its own before its path where names of files would be the same."""
    names = Counter(map(name_of, paths))
    told: list[str] = []
    for number, path in enumerate(paths, start=1):
        name = name_of(path)
        told.append(path if names[name] == 1 else f"{name}-{number}={path}")
    return told
