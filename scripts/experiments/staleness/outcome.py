"""What one run of the study came to, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Evaluated,
    GroupDispatched,
    GroupGenerated,
    GroupSurplus,
    StepDone,
)
from dapo_openrlhf.whole_file import write_whole
from scripts.experiments.staleness.runs import StudyRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a run was at one of its evaluations."""

    step: int
    """Rollout steps done."""
    tokens: int
    """Response tokens of finished groups until then, those of dropped groups included."""
    seconds: float
    """Time in the train loop until then, without what it waited for evaluations and checkpoints."""
    accuracy: float
    """Held-out, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One finished run."""

    arm: str
    seed: int
    points: Sequence[Point]
    mean_age: float
    oldest: int
    dispatched: int
    thrown_away: int
    """Groups that were dropped as surplus or for their age; filtered ones do not count."""
    thrown_away_tokens: int
    """Response tokens of those that were finished; what groups in flight had so far is not known."""
    cut_share: float
    """Share of the trained responses that were cut."""
    trained_length: float
    """Mean number of tokens in a trained response."""
    generated_length: float
    """The same of all responses of finished groups."""
    foreign_load: float | None
    """Share of the machine's processor time that other programs took, 0 to 1."""

    @property
    def final(self) -> Point:
        """The last evaluation."""
        return self.points[-1]

    def accuracy_at(self, axis: str, value: float) -> float:
        """Held-out accuracy at this many ``step``, ``tokens`` or ``seconds``, between evaluations in a straight line."""
        last = self.points[0]
        for point in self.points:
            before, here = getattr(last, axis), getattr(point, axis)
            if here >= value:
                share = (value - before) / (here - before) if here > before else 1.0
                return last.accuracy + share * (point.accuracy - last.accuracy)
            last = point
        return last.accuracy

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Outcome:
        """What :meth:`to_json` wrote."""
        fields: dict[str, Any] = json.loads(line)
        return cls(**{**fields, "points": tuple(Point(**point) for point in fields["points"])})


def read_outcome(run: StudyRun) -> Outcome:
    """Of a finished run's event log."""
    events = [logged.event for logged in read(run.trial.run.events)]
    batches = [event for event in events if isinstance(event, BatchTaken)]
    ages = [age for batch in batches for age in batch.ages]
    surplus = [event for event in events if isinstance(event, GroupSurplus)]
    generated = [event for event in events if isinstance(event, GroupGenerated)]
    responses = sum(batch.responses for batch in batches)
    return Outcome(
        arm=run.arm.name,
        seed=run.trial.seed,
        points=tuple(_points(events)),
        mean_age=fmean(ages),
        oldest=max(ages),
        dispatched=sum(isinstance(event, GroupDispatched) for event in events),
        thrown_away=len(surplus),
        thrown_away_tokens=sum(event.response_tokens for event in surplus),
        cut_share=sum(batch.cut for batch in batches) / responses,
        trained_length=sum(batch.response_tokens for batch in batches) / responses,
        generated_length=sum(event.response_tokens for event in generated)
        / sum(event.responses for event in generated),
        foreign_load=run.foreign_load,
    )


def _points(events: Iterable[object]) -> Iterable[Point]:
    tokens, seconds = 0, 0.0
    spent = {0: (0, 0.0)}
    accuracies: dict[int, float] = {}
    for event in events:
        match event:
            case GroupGenerated():
                tokens += event.response_tokens
            case StepDone():
                seconds += _training(event.laps)
                spent[event.step + 1] = tokens, seconds
            case Evaluated():  # evaluations run beside training, and end some steps later
                accuracies[event.step] = event.accuracy
            case _:
                pass
    for step, accuracy in sorted(accuracies.items()):
        tokens, seconds = spent[step]
        yield Point(step=step, tokens=tokens, seconds=seconds, accuracy=accuracy)


def _training(laps: Mapping[str, float]) -> float:
    return sum(seconds for name, seconds in laps.items() if name not in ("evaluate", "save"))


def write_outcomes(path: Path, runs: Iterable[StudyRun]) -> list[Outcome]:
    """Write a line per finished run; returns them."""
    outcomes = [read_outcome(run) for run in runs if run.trial.finished]
    write_whole(path, "".join(outcome.to_json() + "\n" for outcome in outcomes))
    return outcomes


def read_outcomes(path: Path) -> list[Outcome]:
    """What :func:`write_outcomes` wrote."""
    return [Outcome.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
