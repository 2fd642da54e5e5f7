"""What the trials of a ladder came to: read from their run folders, averaged over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import Evaluated, GroupJudged, RunStarted, StepDone
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.run_folder import RunFolder
from scripts.experiments.ablation.ladder import Rung
from scripts.experiments.ablation.trials import Trial

Points = Sequence[tuple[float, float]]
"""(x, y), ascending in x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One finished run."""

    seed: int
    rows: Sequence[Row]
    """One per rollout step, see :mod:`dapo_openrlhf.pipeline.metrics`."""
    accuracies: Mapping[int, float]
    """Held-out accuracy, 0 to 1, by rollout steps done; 0 steps done is the base model."""
    all_right: Mapping[int, float]
    """By rollout steps done: share, 0 to 1, of the groups judged since the step before whose every answer was right,
    whether the rung drops them or not."""
    generated_tokens: int
    train_seconds: float

    @property
    def final(self) -> float:
        """Held-out accuracy at the end; NaN where it was not measured."""
        return self.accuracies[max(self.accuracies)] if self.accuracies else math.nan

    @property
    def average(self) -> float:
        """Mean held-out accuracy over the measurements after the base model's: how early it rises; NaN without any."""
        later = [accuracy for step, accuracy in self.accuracies.items() if step > 0]
        return statistics.fmean(later) if later else math.nan

    def curve(self, name: str) -> Points:
        """A metric by rollout steps done, without the steps that lack it."""
        values = ((step, row.get(name, math.nan)) for step, row in enumerate(self.rows, start=1))
        return [(float(step), value) for step, value in values if math.isfinite(value)]

    def accuracy_by_tokens(self) -> Points:
        """(response tokens generated until then, held-out accuracy)."""
        spent = [0.0]
        for row in self.rows:
            spent.append(spent[-1] + row["tokens_per_second/generated"] * row["seconds/step"])
        return [(spent[min(step, len(self.rows))], accuracy) for step, accuracy in sorted(self.accuracies.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean of some numbers, one per seed, and their standard deviation."""

    mean: float
    deviation: float
    """The sample's (n - 1); NaN for a single number."""
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one number."""
        numbers = list(values)
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
        return cls(mean=statistics.fmean(numbers), deviation=deviation, count=len(numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class RungResult:
    """All finished seeds of one rung."""

    rung: Rung
    trials: Sequence[TrialResult]
    """At least one, by seed."""

    @property
    def final(self) -> Spread:
        """Held-out accuracy at the end, 0 to 1."""
        return Spread.of(trial.final for trial in self.trials)

    def gain_over(self, other: RungResult) -> Spread | None:
        """Difference of the final accuracies, paired by seed; None if no seed is in both."""
        theirs = {trial.seed: trial.final for trial in other.trials}
        differences = [trial.final - theirs[trial.seed] for trial in self.trials if trial.seed in theirs]
        return Spread.of(differences) if differences else None


def read_ladder(trials: Iterable[Trial]) -> list[RungResult]:
    """The finished trials by rung, in the ladder's order; rungs without any are left out."""
    by_rung: defaultdict[Rung, list[TrialResult]] = defaultdict(list)
    order: list[Rung] = []
    for trial in trials:
        if trial.rung not in order:
            order.append(trial.rung)
        if trial.finished:
            by_rung[trial.rung].append(read_trial(trial.run, trial.seed))
    return [
        RungResult(rung=rung, trials=sorted(by_rung[rung], key=lambda trial: trial.seed))
        for rung in order
        if by_rung[rung]
    ]


def read_trial(run: RunFolder, seed: int) -> TrialResult:
    """Read a finished run's folder."""
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    rows = [{name: value for name, value in row.items() if name != "step"} for row in _json_lines(run.metrics)]
    accuracies, all_right = _read_events(run.events)
    return TrialResult(
        seed=seed,
        rows=rows,
        accuracies=accuracies,
        all_right=all_right,
        generated_tokens=summary["generated_tokens"],
        train_seconds=summary["train_seconds"],
    )


def _read_events(path: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Held-out accuracies and all-right shares by rollout steps done; what a resumed run did anew counts once."""
    accuracies: dict[int, float] = {}
    all_right: dict[int, float] = {}
    judged: list[bool] = []
    for logged in read(path):
        match logged.event:
            case RunStarted():
                judged = []
            case Evaluated() as event:
                accuracies[event.step] = event.accuracy
            case GroupJudged() as event:
                judged.append(event.accuracy == 1.0)
            case StepDone() as event:
                if judged:
                    all_right[event.step + 1] = sum(judged) / len(judged)
                judged = []
    return accuracies, all_right


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
