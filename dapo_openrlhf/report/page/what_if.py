"""What other settings would have made of a run, as it stands on the page; ``plan`` predicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapo_openrlhf.report.page.markup import brief, shown, table

HEAD = (
    "",
    "K",
    "split",
    "seconds a step",
    "tokens/s",
    "engines idle",
    "trainer idle",
    "age",
    "waste",
    "of what K allows",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """A K and a division of the devices, with what is predicted for them. Shares are from 0 to 1."""

    max_staleness: int
    split: str
    """Engines x tensor-parallel size : trainer ranks."""
    step: float
    interval: float
    """Half of the 95 % interval of ``step``, in seconds."""
    tokens_per_second: float
    """Trained response tokens."""
    engines_idle: float
    trainer_idle: float
    mean_age: float
    waste: float
    """Share of the generated tokens that are not trained."""
    of_bound: float
    """Share of the best that any schedule can do at this K."""
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The prospects of one run, or the reason why there are none."""

    label: str
    """Of the run."""
    prospects: Sequence[Prospect] = ()
    words: Sequence[str] = ()
    """Sentences on what is recommended, and on what may be wrong with it."""


def section(what_ifs: Sequence[WhatIf]) -> str:
    """A table for each run; empty without any."""
    return "".join(_of_run(one) for one in what_ifs)


def _of_run(what_if: WhatIf) -> str:
    words = "".join(f"<p>{shown(text)}</p>" for text in what_if.words)
    rows = table(HEAD, map(_row, what_if.prospects)) if what_if.prospects else ""
    return f"<h3>{shown(what_if.label)}</h3>{rows}{words}"


def _row(one: Prospect) -> list[str]:
    return [
        "▶" if one.chosen else "",
        str(one.max_staleness),
        shown(one.split),
        f"{brief(one.step)} ± {brief(one.interval)}",
        brief(one.tokens_per_second),
        f"{one.engines_idle:.0%}",
        f"{one.trainer_idle:.0%}",
        f"{one.mean_age:.2f}",
        f"{one.waste:.0%}",
        f"{min(one.of_bound, 1.0):.0%}",
    ]
