"""A plan from a run: what its steps would have been with another K, another division of its devices, other settings."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dapo_openrlhf.plan.bound import bound
from dapo_openrlhf.plan.fit import Fitted, Material
from dapo_openrlhf.plan.prediction import pooled
from dapo_openrlhf.plan.run_settings import RunSettings
from dapo_openrlhf.plan.scenario import Scenario, TrainerSpeed
from dapo_openrlhf.plan.splits import Candidate, Split, predict

STALENESS = tuple(range(9))
"""The values of K that are predicted for the run's own division of devices."""
ELSEWHERE = (0, 1, 2, 4)
"""Those for other divisions."""
REPLICAS = 5
"""Number of simulations for each prediction, each fitted to steps of the run drawn with replacement."""
QUANTILE = 2.776
"""0.975 quantile of Student's t with ``REPLICAS - 1`` degrees of freedom."""
GROUPS = 4000
"""All replicas of a prediction together make about so many groups in their counted steps."""
OTHER_SPLITS = 2
"""Number of other divisions that are simulated at each K: those with the best bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Other settings at the same K and division."""

    name: str
    candidate: Candidate


class WhatIf:
    """Predicts from what was fitted to a run."""

    def __init__(self, material: Material) -> None:
        self._settings = material.settings
        self.best = material.fit()
        dice = random.Random(0)
        self._drawn = [material.fit_again(dice, self.best.sharing) for _ in range(REPLICAS)]
        self._predicted: dict[tuple[Split, RunSettings], Candidate] = {}

    def itself(self) -> Candidate:
        """The run as it was, predicted: how far this is from what was measured says how good the models are."""
        return self.at(self._settings.max_staleness)

    def every_k(self) -> list[Candidate]:
        """The run's own division at every K."""
        return [self.at(k) for k in STALENESS]

    def at(self, max_staleness: int) -> Candidate:
        """The run's own division at one K."""
        return self._predict(_own(self._settings), replace(self._settings, max_staleness=max_staleness))

    def other_splits(self) -> list[Candidate]:
        """Other divisions of the same devices with engines of the same size, the best two at each K."""
        found = []
        for k in ELSEWHERE:
            at = {split: replace(_with(self._settings, split), max_staleness=k) for split in _splits(self._settings)}
            best = sorted(at, key=lambda split: self._bound(at[split]))[:OTHER_SPLITS]
            found += [self._predict(split, at[split]) for split in best]
        return found

    def _bound(self, settings: RunSettings) -> float:
        return bound(_scenario(self.best, settings, ranks=self._settings.ranks, seed=0)).step

    def variants(self, chosen: Candidate) -> list[Variant]:
        """Over-sampling and what happens at deadlines, at a candidate's K and division."""
        settings = replace(_with(self._settings, chosen.split), max_staleness=chosen.prediction.max_staleness)
        others = {
            "over-sampling 1": replace(settings, over_sampling=1.0),
            "over-sampling auto": replace(settings, over_sampling=None),
            "over-sampling 2": replace(settings, over_sampling=2.0),
            "at deadline: wait": replace(settings, cut_late=False),
            "at deadline: cut": replace(settings, cut_late=True),
        }
        return [
            Variant(name=name, candidate=chosen if other == settings else self._predict(chosen.split, other))
            for name, other in others.items()
            if settings.filtered or not name.startswith("over-sampling")
        ]

    def _predict(self, split: Split, settings: RunSettings) -> Candidate:
        """Predict once, however often it is asked."""
        if (split, settings) not in self._predicted:
            self._predicted[split, settings] = self._simulate(split, settings)
        return self._predicted[split, settings]

    def _simulate(self, split: Split, settings: RunSettings) -> Candidate:
        """Each replica counts as many steps, so that their means are of equal worth."""
        ranks = self._settings.ranks
        each = settings.batch_size / max(self.best.work.pass_rate, 0.02) if settings.filtered else settings.batch_size
        counted = min(20, max(4, round(GROUPS / REPLICAS / each)))
        steps = counted + max(settings.max_staleness + 1, counted // 3 + 1)
        found = [
            predict(split, _scenario(fitted, settings, ranks=ranks, seed=seed), steps=steps).prediction
            for seed, fitted in enumerate(self._drawn)
        ]
        error = QUANTILE * statistics.stdev(one.step for one in found) / math.sqrt(len(found))
        limits = bound(_scenario(self.best, settings, ranks=ranks, seed=0))
        return Candidate(split=split, prediction=pooled(found, error=error), bound=limits)


def _own(settings: RunSettings) -> Split:
    """The run's division. Where engines and trainer share all devices, engines count as none."""
    return Split(
        engines=settings.engines,
        tensor_parallel=settings.tensor_parallel,
        ranks=settings.ranks,
        shared=settings.engines * settings.tensor_parallel + settings.ranks > settings.devices,
    )


def _splits(settings: RunSettings) -> Iterator[Split]:
    """Other divisions of the same devices with engines of the same size, whose ranks an update can be divided among."""
    size = settings.tensor_parallel
    if _own(settings).shared:
        return
    for engines in range(1, (settings.devices - 1) // size + 1):
        split = Split(engines=engines, tensor_parallel=size, ranks=settings.devices - engines * size)
        divides = settings.update is None or settings.update % split.ranks == 0
        if split != _own(settings) and divides:
            yield split


def _with(settings: RunSettings, split: Split) -> RunSettings:
    return replace(settings, engines=split.engines, ranks=split.ranks)


def _scenario(fitted: Fitted, settings: RunSettings, *, ranks: int, seed: int) -> Scenario:
    """The scenario with other settings; ``ranks`` is the number that the trainer was fitted with."""
    scenario = fitted.scenario(settings, steps=24, seed=seed)
    per_token = fitted.trainer.per_token * ranks / settings.ranks
    return replace(scenario, trainer=TrainerSpeed(step=fitted.trainer.step, per_token=per_token))
