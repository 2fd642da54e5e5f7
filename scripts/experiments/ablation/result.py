"""What the trials of each rung came to, averaged over seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.experiments.ablation.ladder import Rung
from scripts.experiments.ablation.measurement import Measurement, read_trial
from scripts.experiments.ablation.trials import Trial


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
class Result:
    """All finished seeds of one rung."""

    rung: Rung
    trials: Sequence[Measurement]
    """At least one, by seed."""

    @property
    def final(self) -> Spread:
        """Held-out accuracy at the end, 0 to 1."""
        return Spread.of(trial.final for trial in self.trials)

    def gain_over(self, other: Result) -> Spread | None:
        """Difference of the final accuracies, paired by seed; None if no seed is in both."""
        theirs = {trial.seed: trial.final for trial in other.trials}
        differences = [trial.final - theirs[trial.seed] for trial in self.trials if trial.seed in theirs]
        return Spread.of(differences) if differences else None


def read_ladder(trials: Iterable[Trial]) -> list[Result]:
    """The finished trials by rung, in the ladder's order; rungs without any are left out."""
    by_rung: defaultdict[Rung, list[Measurement]] = defaultdict(list)
    order: list[Rung] = []
    for trial in trials:
        if trial.rung not in order:
            order.append(trial.rung)
        if trial.finished:
            by_rung[trial.rung].append(read_trial(trial.run, trial.seed))
    return [
        Result(rung=rung, trials=sorted(by_rung[rung], key=lambda trial: trial.seed)) for rung in order if by_rung[rung]
    ]
