"""What is compared: K, corrections at one K, and what becomes of groups that are late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from scripts.experiments.ablation.ladder import Rung

STUDIED = 4
"""The K at which corrections and ways with late groups are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train: what it sets on top of the configuration."""

    name: str
    title: str
    max_staleness: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    dropping: bool = False
    """Whether late groups are dropped by their age, which is a program of its own: :mod:`.dropping`."""

    @property
    def rung(self) -> Rung:
        """The arm as a row of trials."""
        return Rung(name=self.name, title=self.title, paper=0, key="")

    @property
    def module(self) -> str:
        """The program that trains it, for ``python -m``."""
        return "scripts.experiments.staleness.dropping" if self.dropping else "dapo_openrlhf"


def _at(k: int) -> Arm:
    return Arm(name=f"k{k}", title=f"K = {k}", max_staleness=k)


def _studied(name: str, title: str, dropping: bool = False, **settings: object) -> Arm:
    return Arm(
        name=f"k{STUDIED}-{name}",
        title=f"K = {STUDIED}, {title}",
        max_staleness=STUDIED,
        settings={key.replace("__", "."): value for key, value in settings.items()},
        dropping=dropping,
    )


SWEEP = tuple(_at(k) for k in (0, 1, 2, 4, 8))
CORRECTIONS = (
    _studied("off", "no correction", algo__advantage__is_correction_level="off"),
    _studied("masked", "masked", algo__advantage__is_correction_mode="mask"),
)
LATE = (
    _studied("cut", "late groups cut", async__at_deadline="cut"),
    _studied("dropped", "late groups dropped by age", dropping=True),
)
ARMS = (*SWEEP, *CORRECTIONS, *LATE)
"""``k4`` is also the arm with the correction truncated, and the one in which late groups are waited for."""


def choose_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, in order; all for no name. Raises :class:`ConfigError`."""
    known = [arm.name for arm in ARMS]
    for name in names:
        if name not in known:
            raise ConfigError(f"--arms {name}: there is no such arm; there are {', '.join(known)}")
    return tuple(arm for arm in ARMS if not names or arm.name in names)
