"""Decides whether a run has done enough before its last step (standard library)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dapo_openrlhf.pipeline.best import ACCURACY, NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a run ends before its last step; None: not for that reason."""

    target: float | None = None
    """Value of the metric that is enough."""
    patience: int | None = None
    """Number of evaluations in a row, none of them better than the best before, after which no more is expected."""
    hours: float | None = None
    """Time since the command was given."""
    metric: str = ""
    """``ckpt.best_metric_key``: the evaluation's number that is meant."""


class Ending:
    """Knows the evaluations of a run, over all its trainers, and decides after each step."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._measured: dict[int, float] = {}
        self._reached = ""

    def measured(self, step: int, estimates: Mapping[str, float]) -> None:
        """Take note of an evaluation of the weights after ``step`` steps."""
        limits = self._limits
        name = (
            limits.metric if limits.metric not in ("", NONE) else next(n for n in estimates if n.startswith(ACCURACY))
        )
        if name not in estimates:  # pass@k, where too few responses were judged
            return
        value = estimates[name]
        # A trainer that takes another's place measures some steps again, of other weights than those that are lost.
        self._measured = {done: earlier for done, earlier in self._measured.items() if done < step} | {step: value}
        values = list(self._measured.values())
        best = max(values)
        since_best = len(values) - 1 - values.index(best)
        if limits.target is not None and value >= limits.target:
            self._reached = (
                f"{name} was {value:.1%} after {step} steps, and {limits.target:.1%} is enough (eval.target)"
            )
        elif limits.patience is not None and since_best >= limits.patience:
            self._reached = (
                f"{name} was {value:.1%} after {step} steps, the evaluation number {since_best} in a row that was no "
                f"better than {best:.1%} (eval.patience {limits.patience})"
            )

    def reason(self, seconds: float) -> str:
        """Why the run ends now, ``seconds`` after the command was given; empty if it goes on."""
        hours = self._limits.hours
        if hours is not None and seconds >= 3600 * hours:
            return f"{seconds / 3600:.2f} hours have passed (train.max_hours {hours:g})"
        return self._reached
