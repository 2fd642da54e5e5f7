"""The result of a simulated run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import BatchTaken, Event, GroupGenerated, StepDone
from dapo_openrlhf.pipeline.metrics import WARM_UP_SHARE
from dapo_openrlhf.plan.actors import SimulatedTrainer
from dapo_openrlhf.plan.engine import SimulatedEngine
from dapo_openrlhf.plan.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a run is predicted to do in its counted steps. Times are in seconds, of the run and not of the simulation."""

    max_staleness: int
    step_seconds: tuple[float, ...]
    trained_tokens: int
    """Response tokens of the counted steps."""
    generated_tokens: int
    """Response tokens of the groups that were generated meanwhile, the dropped ones included."""
    engines_idle: float
    """Share of the time in which an engine runs no sequence, over all engines."""
    trainer_idle: float
    """Share of the time in which the trainer does not train."""
    ages: Counter[int]
    """Number of trained groups by their policy age."""
    cut_share: float = 0.0
    """Share of the trained responses that were cut at a deadline."""
    error: float | None = None
    """Half of the 95 % interval of the mean step, where several simulations tell; see :attr:`interval`."""

    @property
    def step(self) -> float:
        """Mean duration of a step."""
        return statistics.fmean(self.step_seconds)

    @property
    def spread(self) -> float:
        """Standard error of :attr:`step`; nan with fewer than two steps."""
        count = len(self.step_seconds)
        return statistics.stdev(self.step_seconds) / count**0.5 if count > 1 else float("nan")

    @property
    def interval(self) -> float:
        """Half of the 95 % interval of :attr:`step`, in seconds."""
        return 1.96 * self.spread if self.error is None else self.error

    @property
    def tokens_per_second(self) -> float:
        """Trained response tokens per second."""
        return self.trained_tokens / sum(self.step_seconds)

    @property
    def mean_age(self) -> float:
        """Mean policy age of the trained groups."""
        return sum(age * count for age, count in self.ages.items()) / self.ages.total()

    @property
    def max_age(self) -> int:
        """Largest policy age of the trained groups."""
        return max(self.ages)

    @property
    def waste(self) -> float:
        """Share of the generated tokens that are not trained, 0 to 1."""
        return max(0.0, 1 - self.trained_tokens / self.generated_tokens)


def pooled(parts: Sequence[Prediction], *, error: float) -> Prediction:
    """Several simulations of the same run as one; ``error`` is half of the 95 % interval of their mean step."""
    seconds = [sum(part.step_seconds) for part in parts]

    def mean(values: Iterable[float]) -> float:
        return sum(value * weight for value, weight in zip(values, seconds, strict=True)) / sum(seconds)

    return Prediction(
        max_staleness=parts[0].max_staleness,
        step_seconds=tuple(step for part in parts for step in part.step_seconds),
        trained_tokens=sum(part.trained_tokens for part in parts),
        generated_tokens=sum(part.generated_tokens for part in parts),
        engines_idle=mean(part.engines_idle for part in parts),
        trainer_idle=mean(part.trainer_idle for part in parts),
        ages=sum((part.ages for part in parts), Counter[int]()),
        cut_share=statistics.fmean(part.cut_share for part in parts),
        error=error,
    )


class Recorder:
    """Collects a prediction from the events of a simulated run."""

    def __init__(
        self, scenario: Scenario, log: EventLog, engines: Sequence[SimulatedEngine], trainer: SimulatedTrainer
    ) -> None:
        self._scenario = scenario
        self._log = log
        self._engines = engines
        self._trainer = trainer
        self._ends: list[float] = []
        self._batches: list[BatchTaken] = []
        self._generated: list[int] = []
        """Response tokens generated up to the end of each step."""
        self._tokens = 0
        self._busy: list[tuple[float, float]] = []
        """Busy seconds of all engines, and of the trainer, up to the end of each step."""
        log.listen(self._note)

    def _note(self, event: Event) -> None:
        match event:
            case GroupGenerated():
                self._tokens += event.response_tokens
            case BatchTaken():
                self._batches.append(event)
            case StepDone():
                self._ends.append(self._log.now())
                self._generated.append(self._tokens)
                self._busy.append((sum(engine.busy for engine in self._engines), self._trainer.busy))
            case _:
                pass

    def prediction(self) -> Prediction:
        """The prediction, once the run is over."""
        first = max(1, int(WARM_UP_SHARE * self._scenario.steps))
        if self._scenario.max_staleness + 1 < self._scenario.steps - 1:
            first = max(first, self._scenario.max_staleness + 1)
        ends = self._ends[first - 1 :]
        counted = self._batches[first:]
        seconds = ends[-1] - ends[0]
        engines, trainer = (after - before for before, after in zip(self._busy[first - 1], self._busy[-1], strict=True))
        return Prediction(
            max_staleness=self._scenario.max_staleness,
            step_seconds=tuple(after - before for before, after in pairwise(ends)),
            trained_tokens=sum(batch.response_tokens for batch in counted),
            generated_tokens=self._generated[-1] - self._generated[first - 1],
            engines_idle=max(0.0, 1 - engines / (seconds * len(self._engines))),
            trainer_idle=max(0.0, 1 - trainer / seconds),
            ages=Counter(age for batch in counted for age in batch.ages),
            cut_share=sum(batch.cut for batch in counted) / sum(batch.responses for batch in counted),
        )
