"""A plan in words: its table, and what is written as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dapo_openrlhf.plan.prediction import Prediction
from dapo_openrlhf.plan.splits import Advice, Candidate, pareto

HEAD = (
    "K",
    "split",
    "step",
    "tokens/s",
    "a device",
    "engines idle",
    "trainer idle",
    "age",
    "waste",
    "of bound",
    "limit",
)


def table(candidates: Sequence[Candidate], advice: Advice) -> str:
    """The best split of each K, one line each; ``*`` is the Pareto set, ``>`` the one to take."""
    front = pareto(candidates)
    rows = [("", *HEAD)]
    for one in best_of_each(candidates):
        what, mark = one.prediction, ">" if one is advice.chosen else "*" if one in front else ""
        rows.append(
            (
                mark,
                str(what.max_staleness),
                str(one.split),
                _step(what),
                f"{what.tokens_per_second:,.0f}",
                f"{one.per_device:,.0f}",
                f"{what.engines_idle:.0%}",
                f"{what.trainer_idle:.0%}",
                f"{what.mean_age:.2f}",
                f"{what.waste:.0%}",
                f"{min(one.of_bound, 1.0):.0%}",
                one.bound.limit,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _step(what: Prediction) -> str:
    """Seconds of a step, with half of the interval where several simulations tell it."""
    places = 1 if what.step >= 10 else 2
    interval = "" if what.error is None else f" ± {what.error:.{places}f}"
    return f"{what.step:.{places}f}{interval} s"


def ages(what: Prediction) -> str:
    """How many of the trained groups had which age."""
    total = what.ages.total()
    return ", ".join(f"{age} {count / total:.0%}" for age, count in sorted(what.ages.items()))


def best_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best split of each K, in ascending order of K."""
    best: dict[int, Candidate] = {}
    for one in candidates:
        known = best.get(one.prediction.max_staleness)
        if known is None or one.per_device > known.per_device:
            best[one.prediction.max_staleness] = one
    return [best[max_staleness] for max_staleness in sorted(best)]


def as_dict(candidates: Sequence[Candidate], advice: Advice) -> dict[str, Any]:
    """Every candidate with all its figures, in a form that JSON can hold."""
    front = pareto(candidates)
    return {
        "advice": {"split": str(advice.chosen.split), "max_staleness": advice.chosen.prediction.max_staleness,
                   "reason": advice.reason},
        "candidates": [figures(one) | {"pareto": one in front} for one in candidates],
    }  # fmt: skip


def figures(one: Candidate) -> dict[str, Any]:
    """Every figure of a candidate; half of an interval of 95 %, in seconds, or null where it is not known."""
    what = one.prediction
    return {
        "max_staleness": what.max_staleness,
        "engines": one.split.engines,
        "tensor_parallel_size": one.split.tensor_parallel,
        "trainer_ranks": one.split.ranks,
        "step_seconds": what.step,
        "step_seconds_half_interval": what.interval if math.isfinite(what.interval) else None,
        "trained_tokens_per_second": what.tokens_per_second,
        "trained_tokens_per_second_per_device": one.per_device,
        "engines_idle": what.engines_idle,
        "trainer_idle": what.trainer_idle,
        "ages": {str(age): count for age, count in sorted(what.ages.items())},
        "mean_age": what.mean_age,
        "max_age": what.max_age,
        "waste": what.waste,
        "cut_share": what.cut_share,
        "bound_seconds": {
            "trainer": one.bound.trainer,
            "engines": one.bound.engines,
            "round_trip": one.bound.round_trip,
        },
    }
