"""A plan from a run: what its steps would have been with another K, another division of its devices, other settings."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from dapo_openrlhf.plan.bound import Bound, bound
from dapo_openrlhf.plan.fit import Fitted, Material
from dapo_openrlhf.plan.prediction import Prediction, pooled
from dapo_openrlhf.plan.processes import Processes
from dapo_openrlhf.plan.run_settings import RunSettings
from dapo_openrlhf.plan.scenario import Scenario, TrainerSpeed
from dapo_openrlhf.plan.splits import Candidate, Split

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

    def __init__(self, material: Material, processes: Processes | None = None) -> None:
        """``processes``: where simulations are made; by default in this one."""
        self._settings = material.settings
        self._processes = processes or Processes(1)
        self.best = material.fit()
        dice = random.Random(0)
        self._drawn = [material.fit_again(dice, self.best.sharing) for _ in range(REPLICAS)]
        self._predicted: dict[tuple[Split, RunSettings], Candidate] = {}

    def itself(self) -> Candidate:
        """The run as it was, predicted: how far this is from what was measured says how good the models are."""
        return self.at(self._settings.max_staleness)

    def every_k(self) -> list[Candidate]:
        """The run's own division at every K."""
        own, settings = _own(self._settings), self._settings
        return self._predict_all([(own, replace(settings, max_staleness=k)) for k in STALENESS])

    def at(self, max_staleness: int) -> Candidate:
        """The run's own division at one K."""
        return self._predict(_own(self._settings), replace(self._settings, max_staleness=max_staleness))

    def other_splits(self) -> list[Candidate]:
        """Other divisions of the same devices with engines of the same size, the best two at each K."""
        asked: list[tuple[Split, RunSettings]] = []
        for k in ELSEWHERE:
            at = {split: replace(_with(self._settings, split), max_staleness=k) for split in _splits(self._settings)}
            best = sorted(at, key=lambda split: self._bound(at[split]).step)[:OTHER_SPLITS]
            asked += [(split, at[split]) for split in best]
        return self._predict_all(asked)

    def _bound(self, settings: RunSettings) -> Bound:
        return bound(_scenario(self.best, settings, ranks=self._settings.ranks, seed=0))

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
        asked = {
            name: other for name, other in others.items() if settings.filtered or not name.startswith("over-sampling")
        }
        found = self._predict_all([(chosen.split, other) for other in asked.values()])
        return [
            Variant(name=name, candidate=chosen if other == settings else candidate)
            for (name, other), candidate in zip(asked.items(), found, strict=True)
        ]

    def _predict(self, split: Split, settings: RunSettings) -> Candidate:
        return self._predict_all([(split, settings)])[0]

    def _predict_all(self, asked: Sequence[tuple[Split, RunSettings]]) -> list[Candidate]:
        """Predict each once, however often it is asked."""
        begun = {one: self._begin(*one) for one in dict.fromkeys(asked) if one not in self._predicted}
        for one, replicas in begun.items():
            self._predicted[one] = self._candidate(*one, [replica.result() for replica in replicas])
        return [self._predicted[one] for one in asked]

    def _begin(self, split: Split, settings: RunSettings) -> list[Future[Prediction]]:
        """Each replica counts as many steps, so that their means are of equal worth."""
        ranks = self._settings.ranks
        each = settings.batch_size / max(self.best.work.pass_rate, 0.02) if settings.filtered else settings.batch_size
        counted = min(20, max(4, round(GROUPS / REPLICAS / each)))
        steps = counted + max(settings.max_staleness + 1, counted // 3 + 1)
        return self._processes.simulate(
            [
                (split, _scenario(fitted, settings, ranks=ranks, seed=seed), steps)
                for seed, fitted in enumerate(self._drawn)
            ]
        )

    def _candidate(self, split: Split, settings: RunSettings, found: Sequence[Prediction]) -> Candidate:
        error = QUANTILE * statistics.stdev(one.step for one in found) / math.sqrt(len(found))
        limits = self._bound(settings)
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
