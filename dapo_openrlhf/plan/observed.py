"""What one life of a run did, as far as a plan needs it: its groups, its steps, and what disturbed them.

A *life* begins with the run, where it is resumed, and where its trainer is replaced; queue and slots begin anew in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.event_log import Logged
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    EngineAnswers,
    EngineLost,
    EngineReplaced,
    EngineSilent,
    Evaluated,
    GroupCut,
    GroupDispatched,
    GroupFailed,
    GroupGenerated,
    GroupJudged,
    GroupSurplus,
    PublicationLive,
    RunStarted,
    StepDone,
    StepTrained,
    WorkerSpans,
)
from dapo_openrlhf.pipeline.metrics import WARM_UP_SHARE
from dapo_openrlhf.types import Span

Window = tuple[float, float]
"""Begin and end in seconds on the log's clock."""


@dataclass(slots=True, kw_only=True)
class Group:
    """A group that was generated."""

    engine: int
    begin: float
    end: float
    lengths: tuple[int, ...]
    """Of each response, in tokens; empty in logs of earlier versions."""
    response_tokens: int
    responses: int
    prompt_tokens: int
    cut: bool = False
    keep: bool | None = None
    """What dynamic sampling decided; None where it was not judged."""
    reward_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Its duration in the engine."""
        return self.end - self.begin

    @property
    def longest(self) -> int:
        """Length of the longest response."""
        return max(self.lengths)


@dataclass(slots=True, kw_only=True)
class Step:
    """A rollout step that was finished."""

    begin: float
    end: float
    batch: BatchTaken
    trained: StepTrained
    trained_at: float
    laps: dict[str, float]

    @property
    def seconds(self) -> float:
        """Its duration without what the train loop waited for evaluations and checkpoints."""
        return self.end - self.begin - self.laps.get("evaluate", 0.0) - self.laps.get("save", 0.0)

    @property
    def training(self) -> Window:
        """The time in the trainer."""
        return self.trained_at - self.trained.seconds, self.trained_at


@dataclass(slots=True, kw_only=True)
class Life:
    """One life of a run."""

    begun: RunStarted
    groups: dict[int, Group] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    publications: list[PublicationLive] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """Of engines and trainer ranks, on the log's clock."""
    unfinished: dict[int, float] = field(default_factory=dict)
    """Time at which each group was dispatched that is in flight."""
    given_up: list[Window] = field(default_factory=list)
    """From dispatch to the end, of groups that ended before they were generated."""
    disturbances: list[tuple[Window, str]] = field(default_factory=list)
    """When evaluations ran or an engine was out of order, and which of these."""
    half_done: bool = False
    """Whether a step was begun after the last finished one."""
    end: float = 0.0

    @property
    def first(self) -> int:
        """Number of steps at the beginning that are not counted, in which the queue fills."""
        wanted = max(1, self.begun.max_staleness + 1, int(WARM_UP_SHARE * len(self.steps)))
        return max(1, min(wanted, len(self.steps) // 2))

    @property
    def counted(self) -> Sequence[Step]:
        """The steps after the first ones."""
        return self.steps[self.first :]

    def undisturbed(self, window: Window) -> bool:
        """Whether neither an evaluation nor a lost engine falls into a time."""
        return not any(begin < window[1] and end > window[0] for (begin, end), _ in self.disturbances)


def lives(log: Iterable[Logged]) -> list[Life]:
    """The lives in a log, in their order; what comes before the first :class:`RunStarted` is left out."""
    found: list[_Reader] = []
    for logged in log:
        if isinstance(logged.event, RunStarted):
            found.append(_Reader(logged.event))
        elif found:
            kind = type(logged.event).__name__
            if kind == "Rewound":
                found.append(_Reader(found[-1].life.begun))
            found[-1].add(logged)
    return [reader.close() for reader in found]


class _Reader:
    """Collects the events of one life."""

    def __init__(self, begun: RunStarted) -> None:
        self.life = Life(begun=begun)
        self._batch: BatchTaken | None = None
        self._trained: tuple[StepTrained, float] | None = None
        self._last_end: float | None = None
        self._cut: set[int] = set()
        self._broken: dict[int, float] = {}  # engine -> since when it has been out of order

    def add(self, logged: Logged) -> None:
        """Take in an event."""
        life, now = self.life, logged.time
        if not math.isfinite(now):
            return
        life.end = max(life.end, now)
        match logged.event:
            case GroupDispatched() as event:
                life.unfinished[event.group] = now
                self._last_end = now if self._last_end is None else self._last_end
            case GroupGenerated() | GroupJudged() | GroupFailed() | GroupSurplus() | GroupCut():
                self._group(logged)
            case BatchTaken() as event:
                self._batch, self._trained, life.half_done = event, None, True
            case StepTrained() as event if event.seconds >= 0:
                self._trained = event, now
            case StepDone() as event:
                self._step(event, now)
            case PublicationLive() as event if event.seconds >= 0:
                life.publications.append(event)
            case WorkerSpans() as event:
                start = life.begun.unix_time
                life.spans += [
                    Span(worker=span.worker, kind=span.kind, start=span.start - start, end=span.end - start)
                    for span in event.spans
                ]
            case Evaluated() as event if event.seconds >= 0:
                life.disturbances.append(((now - event.seconds, now), "evaluation"))
            case EngineLost() | EngineSilent() as event:
                self._broken.setdefault(event.engine, now)
            case EngineReplaced() | EngineAnswers() as event:
                self._works(event.engine, now)

    def _group(self, logged: Logged) -> None:
        life, now = self.life, logged.time
        match logged.event:
            case GroupGenerated() as event if event.group in life.unfinished and event.responses and event.seconds >= 0:
                del life.unfinished[event.group]
                life.groups[event.group] = Group(
                    engine=event.engine,
                    begin=now - event.seconds,
                    end=now,
                    lengths=tuple(max(1, length) for length in event.lengths),
                    response_tokens=event.response_tokens,
                    responses=event.responses,
                    prompt_tokens=event.prompt_tokens,
                    cut=event.group in self._cut,
                )
            case GroupJudged() as event if event.group in life.groups:
                group = life.groups[event.group]
                group.keep = event.keep
                group.reward_seconds = event.seconds if event.seconds >= 0 else None
            case GroupCut() as event:
                self._cut.add(event.group)
            case GroupFailed() | GroupSurplus() as event if event.group in life.unfinished:
                life.given_up.append((life.unfinished.pop(event.group), now))
            case _:
                pass

    def _step(self, event: StepDone, now: float) -> None:
        batch, trained, begin = self._batch, self._trained, self._last_end
        self._batch, self._trained, self._last_end, self.life.half_done = None, None, now, False
        if batch is None or trained is None or begin is None or not batch.step == trained[0].step == event.step:
            return  # lines of this step are missing
        self.life.steps.append(
            Step(begin=begin, end=now, batch=batch, trained=trained[0], trained_at=trained[1], laps=dict(event.laps))
        )

    def _works(self, engine: int, now: float) -> None:
        if (since := self._broken.pop(engine, None)) is not None:
            self.life.disturbances.append(((since, now), f"loss or silence of engine {engine}"))

    def close(self) -> Life:
        """The life, once all of its events are in."""
        for engine in list(self._broken):
            self._works(engine, self.life.end)
        return self.life


def overlap(window: Window, others: Sequence[Window]) -> float:
    """Seconds of a time that fall into others, which do not overlap each other."""
    return sum(max(0.0, min(window[1], end) - max(window[0], begin)) for begin, end in others)


def union(windows: Iterable[Window]) -> list[Window]:
    """The same time as windows that do not overlap, in order."""
    merged: list[Window] = []
    for begin, end in sorted(windows):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged
