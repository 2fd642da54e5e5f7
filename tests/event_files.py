"""Event logs for tests that read one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import BatchTaken, Evaluated, Event, GroupJudged, RunStarted
from dapo_openrlhf.types import PolicyVersion


def write_events(path: Path, events: Iterable[tuple[float, Event]]) -> None:
    """Write a log of events, each at its time in seconds, behind what the file has."""
    now = [0.0]
    with path.open("a", encoding="utf-8") as file:
        log = EventLog(file, clock=lambda: now[0])
        for now[0], event in events:
            log.emit(event)


def run_started(unix_time: float) -> RunStarted:
    """A run on one engine and one trainer rank begins."""
    return RunStarted(
        unix_time=unix_time, engines=1, trainer_ranks=1, devices=2, max_staleness=1, batch_size=1, first_step=0
    )


def group_judged(*, keep: bool = True, accuracy: float = 0.5) -> GroupJudged:
    """A group is kept or dropped."""
    reason = "kept" if keep else "all_right"
    return GroupJudged(group=0, keep=keep, reason=reason, accuracy=accuracy, reward=0.0, response_tokens=1, seconds=0.0)


def batch_taken(step: int, *, ages: tuple[int, ...], response_tokens: int, responses: int = 1) -> BatchTaken:
    """A batch is taken for the step."""
    return BatchTaken(
        step=step, version=PolicyVersion(step), groups=tuple(range(len(ages))), ages=ages, waited=0.0, reward=0.0,
        accuracy=0.5, responses=responses, response_tokens=response_tokens, longest_response=1, truncated=0, cut=0,
        cut_tokens=0, in_flight=0, ready=0, free_slots=0, over_sampled=0, training_slots=1,
    )  # fmt: skip


def evaluated(step: int, accuracy: float) -> Evaluated:
    """An evaluation ended after so many steps."""
    return Evaluated(step=step, version=PolicyVersion(step), accuracy=accuracy, problems=1, responses=1, seconds=0.0)
