"""Predictions from the log of one K beside what was measured at the others."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from dapo_openrlhf.plan.after import WhatIf
from dapo_openrlhf.plan.fit import Material
from dapo_openrlhf.plan.reading import read_run
from dapo_openrlhf.plan.run_words import Measured, measured
from scripts.experiments.plan_validation.runs import Trial

SOURCES = (0, 1)
"""The K of the runs that predictions are made from."""
STEP_ERROR = 0.10
AGE_ERROR = 0.1
"""What is aimed at: relative error of the mean step, and error of the mean age."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prediction, from the log of one run, with the mean of what all repeats measured."""

    work: str
    source: int
    repeat: int
    load: float
    """Mean load average of the runs that are compared."""
    max_staleness: int
    step: float
    predicted: float
    interval: float
    age: float
    predicted_age: float

    @property
    def error(self) -> float:
        """Relative error of the step."""
        return self.predicted / self.step - 1

    @property
    def within(self) -> bool:
        """Whether both errors are as small as is aimed at."""
        return abs(self.error) <= STEP_ERROR and abs(self.predicted_age - self.age) <= AGE_ERROR


def rows(trials: Sequence[Trial]) -> Iterator[Row]:
    """Every prediction of the finished trials."""
    done: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.done:
            done[trial.work].append(trial)
    for work, mine in done.items():
        found = {trial.folder: measured(read_run(trial.run).life) for trial in mine}
        for source in (trial for trial in mine if trial.max_staleness in SOURCES):
            run = read_run(source.run)
            what_if = WhatIf(Material(run.life, run.settings))
            for k in sorted({trial.max_staleness for trial in mine}):
                same = [trial for trial in mine if trial.max_staleness == k]
                yield _row(work, source, what_if, [found[trial.folder] for trial in same], _load([source, *same]))


def _load(trials: Sequence[Trial]) -> float:
    return fmean(load for trial in trials for load in trial.load())


def _row(work: str, source: Trial, what_if: WhatIf, others: Sequence[Measured], load: float) -> Row:
    k = others[0].max_staleness
    found = what_if.at(k).prediction
    return Row(
        work=work,
        source=source.max_staleness,
        repeat=source.repeat,
        load=load,
        max_staleness=k,
        step=fmean(one.step for one in others),
        predicted=found.step,
        interval=found.interval,
        age=fmean(one.mean_age for one in others),
        predicted_age=found.mean_age,
    )


def table(found: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head = "| work | log of | predicted for | step measured | predicted | error | age measured | predicted | load |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in found:
        lines.append(
            f"| {row.work} | K = {row.source} | K = {row.max_staleness} | {row.step:.2f} s | {row.predicted:.2f} ± "
            f"{row.interval:.2f} s | {row.error:+.0%} | {row.age:.2f} | {row.predicted_age:.2f} | {row.load:.1f} |"
        )
    return "\n".join(lines)
