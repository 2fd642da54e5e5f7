"""The result of the repeats of one arm."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dapo_openrlhf.bench.arm import Measurement


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians over all repeats of one arm, with the range over repeats where it matters."""

    name: str
    runs: int
    trained_tokens_per_second: float
    trained_tokens_per_second_range: tuple[float, float]
    step_seconds: float
    """Median over all counted steps of all repeats."""
    step_seconds_range: tuple[float, float]
    """First and third quartile over these steps."""
    mean_step_seconds: float
    engine_idle: float
    """Share of the time for which the engine is idle, 0 to 1."""
    trainer_idle: float
    mean_age: float | None
    max_age: int | None
    generate_seconds: float
    train_seconds: float
    busier_seconds: float
    """Mean over steps of the longer of generating and training in each step."""
    publish_seconds: float
    pass_rate: float
    accuracy: float | None
    """Median held-out accuracy after the last step; None where it was not measured."""
    foreign_load: float
    """Largest share of the processor time that other programs took during a run, 0 to 1."""
    devices: int
    """Number of devices that a run uses, those of engines included."""

    @property
    def bound(self) -> float:
        """max(generate, train), the lower bound of a step's duration with these two workers."""
        return max(self.generate_seconds, self.train_seconds)

    @property
    def closeness(self) -> float:
        """The bound divided by the duration of the mean step, 1 at best."""
        return self.bound / self.mean_step_seconds

    def as_dict(self) -> dict[str, object]:
        """Every figure of the table by name."""
        return asdict(self) | {"bound_seconds": self.bound, "bound_over_step": self.closeness}


def summarise(name: str, runs: Sequence[Measurement], *, devices: int = 2) -> Result:
    """Compute the medians over an arm's repeats."""
    rates = [run.trained_tokens_per_second for run in runs]
    steps = sorted(seconds for run in runs for seconds in run.step_seconds)
    means = [run.seconds / len(run.step_seconds) for run in runs]
    generate = statistics.median(run.generate_seconds for run in runs)
    train = statistics.median(run.train_seconds for run in runs)
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    ages = [run.mean_age for run in runs if run.mean_age is not None]
    quartiles = statistics.quantiles(steps, n=4)
    mean_step = statistics.median(means)
    return Result(
        name=name,
        runs=len(runs),
        trained_tokens_per_second=statistics.median(rates),
        trained_tokens_per_second_range=(min(rates), max(rates)),
        step_seconds=statistics.median(steps),
        step_seconds_range=(quartiles[0], quartiles[2]),
        mean_step_seconds=mean_step,
        engine_idle=max(0.0, 1 - generate / mean_step),
        trainer_idle=max(0.0, 1 - train / mean_step),
        mean_age=statistics.median(ages) if ages else None,
        max_age=max((run.max_age for run in runs if run.max_age is not None), default=None),
        generate_seconds=generate,
        train_seconds=train,
        busier_seconds=statistics.median(run.busier_seconds for run in runs),
        publish_seconds=statistics.median(run.publish_seconds for run in runs),
        pass_rate=statistics.median(run.pass_rate for run in runs),
        accuracy=statistics.median(accuracies) if accuracies else None,
        foreign_load=max(run.foreign_load for run in runs),
        devices=devices,
    )
