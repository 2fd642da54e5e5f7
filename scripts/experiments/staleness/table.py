"""The study's table, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan

from scripts.experiments.ablation.result import Spread
from scripts.experiments.staleness.arms import ARMS
from scripts.experiments.staleness.outcome import Outcome

PERCENT = 100.0
HEADER = (
    "arm | seeds | equal steps | equal tokens | equal time | s per step | mean age | oldest | thrown away | cut "
    "| length, trained / generated | other programs"
)


def table_text(outcomes: Sequence[Outcome]) -> str:
    """A row per arm, and below it what the columns mean."""
    columns = HEADER.count("|") + 1
    lines = [f"| {HEADER} |", "|---|" + "--:|" * (columns - 1)]
    equal = {axis: _common(outcomes, axis) for axis in ("step", "tokens", "seconds")}
    for arm in ARMS:
        mine = [outcome for outcome in outcomes if outcome.arm == arm.name]
        if mine:
            lines.append("| " + " | ".join([arm.title, str(len(mine)), *_cells(mine, equal)]) + " |")
    return "\n".join([*lines, "", _legend(equal)]) + "\n"


def _common(outcomes: Sequence[Outcome], axis: str) -> float:
    """How far every run came."""
    return min(float(getattr(outcome.final, axis)) for outcome in outcomes)


def _cells(mine: Sequence[Outcome], equal: dict[str, float]) -> list[str]:
    def mean(of: Callable[[Outcome], float], digits: int = 1) -> str:
        return f"{Spread.of(of(outcome) for outcome in mine).mean:.{digits}f}"

    loads = [outcome.foreign_load for outcome in mine if outcome.foreign_load is not None]
    return [
        *(_accuracy(mine, axis, value) for axis, value in equal.items()),
        mean(lambda outcome: outcome.final.seconds / outcome.final.step, 2),
        mean(lambda outcome: outcome.mean_age, 2),
        str(max(outcome.oldest for outcome in mine)),
        mean(lambda outcome: PERCENT * outcome.thrown_away / outcome.dispatched) + " %",
        mean(lambda outcome: PERCENT * outcome.cut_share) + " %",
        mean(lambda outcome: outcome.trained_length) + " / " + mean(lambda outcome: outcome.generated_length),
        f"{PERCENT * Spread.of(loads).mean:.0f} %" if loads else "not noted",
    ]


def _accuracy(mine: Sequence[Outcome], axis: str, value: float) -> str:
    spread = Spread.of(PERCENT * outcome.accuracy_at(axis, value) for outcome in mine)
    return f"{spread.mean:.1f}" if isnan(spread.deviation) else f"{spread.mean:.1f} ± {spread.deviation:.1f}"


def _legend(equal: dict[str, float]) -> str:
    return (
        f"% right on held-out problems: after {equal['step']:.0f} steps, {equal['tokens']:,.0f} response tokens generated, "
        f"and {equal['seconds']:.0f} s of training, which is as far as every run came; means over seeds ± their standard "
        "deviation. Thrown away: groups dispatched in vain, which are those of over-sampling and, if it is done, those dropped by "
        "age; filtered ones do not count. Cut: of the trained responses. Other "
        "programs: their share of the machine's processor time while these runs ran; beyond a few percent the columns with "
        "times mean little."
    )
