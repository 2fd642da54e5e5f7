"""The lives of a run (asyncio): when the trainer is lost, a new one goes on from the newest good checkpoint.

::

    life: rollouts and training ──▶ done
      ▲            │ TrainerLost
      │            ▼
    new trainer ◀── pause ◀── newest good checkpoint ◀── what is left of the trainer is ended

A life is a :class:`~dapo_openrlhf.pipeline.conductor.Pipeline`. Engines and reward workers outlive it. A new life begins as
a resumed run does: from the checkpoint's state, so the prompts of groups that were in flight, in the queue or trained
since then are given out again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from dapo_openrlhf.pipeline.conductor import Outcome, Pipeline
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Rewound, TrainerReplaced
from dapo_openrlhf.pipeline.ledger import Ledger
from dapo_openrlhf.pipeline.ports import TrainerLost
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.pipeline.stop import GraceOver, StopAsked, StopRequest

FIRST_PAUSE_SECONDS = 2.0
"""Pause before the first restart of the period."""

PAUSE_FACTOR = 5.0
"""How many times longer each further pause of the period is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a life takes over from the one before."""

    ledger: Ledger = field(default_factory=Ledger)
    """The counters of groups, which cover the whole run."""
    evaluates_first: bool = True
    """Whether the weights at the beginning are still to be measured."""


class TrainerSource(Protocol):
    """Ends what is left of a lost trainer, and starts new ones."""

    async def end(self) -> None:
        """End every process of the trainer at once, those that hang included."""
        ...

    async def newest(self) -> int:
        """Choose the checkpoint to go on from; returns the number of rollout steps in it."""
        ...

    async def begin(self, carried: Carried) -> Pipeline:
        """Start a trainer from the chosen checkpoint and publish its weights. Raises :class:`TrainerLost`."""
        ...


def pause_before(number: int) -> float:
    """Seconds to wait before a restart, by its number within the period, from 1."""
    return FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** (number - 1)


class Lives:
    """Runs one life after the other until the run is done or asked to end."""

    def __init__(self, first: Pipeline, source: TrainerSource, *, most: int, log: EventLog) -> None:
        """``most``: number of new trainers within an hour, after which the next loss ends the run."""
        self._life = first
        self._source = source
        self._restarts = RestartBudget(most)
        self._losses = 0
        self._log = log
        self._first_step = self._done = first.first_step
        self._lost: TrainerLost | None = None
        self._lost_at = 0.0
        self._carried = Carried()
        self._total = Outcome()

    async def run(self, stop: StopRequest) -> Outcome:
        """Live until the run is done; returns the outcome of all lives together.

        Raises :class:`TrainerLost` when the trainer is lost once too often, and what else ends a life.
        """
        began = self._log.now()
        while not await self._lived(stop):
            try:
                stop.check()
                self._life = await stop.unless_asked(self._next_life())
            except StopAsked:
                await self._stopped(stop)
                break
        total = self._total
        total.train_seconds += self._life_began - began
        total.accuracy_before = total.accuracies.get(self._first_step)
        return total

    async def _lived(self, stop: StopRequest) -> bool:
        """Live once; returns whether the run has ended, and otherwise keeps what is known of the trainer's loss."""
        self._life_began = self._log.now()
        try:
            await self._life.run(stop)
        except* TrainerLost as group:
            self._lost, self._lost_at = _first(group), self._log.now()
        outcome = self._life.outcome
        self._done = self._life.first_step + outcome.steps
        self._add(outcome)
        return self._lost is None

    async def _next_life(self) -> Pipeline:
        while self._lost is not None:
            number = self._count(self._lost)
            pause = pause_before(number)
            await self._source.end()
            self._rewind(await self._source.newest(), restart=number, pause=pause)
            await asyncio.sleep(pause)
            try:
                life = await self._source.begin(self._carried)
            except TrainerLost as again:
                self._lost = again
        self._total.restarts += 1
        self._log.emit(TrainerReplaced(step=life.first_step, seconds=self._log.now() - self._lost_at))
        return life

    def _count(self, lost: TrainerLost) -> int:
        """The number of the restart that a loss asks for. Raises :class:`TrainerLost` when there have been enough."""
        self._losses += 1
        number, most = self._restarts.charge(self._losses, self._log.now()), self._restarts.most
        if number > most:
            before = f" after {number - 1} restarts within an hour" if number > 1 else ""
            raise TrainerLost(
                f"{lost}; that ends the run{before} (train.max_restarts {most}), which can be continued from its newest "
                "checkpoint with --resume"
            ) from lost
        return number

    async def _stopped(self, stop: StopRequest) -> None:
        """Take the newest checkpoint as what is left of a run that was asked to end before a new trainer was there."""
        if self._lost is not None:
            try:
                kept = await stop.within_grace(self._source.newest())
            except GraceOver:
                kept = self._life.first_step
            self._rewind(kept, restart=0, pause=0.0)

    def _rewind(self, kept: int, *, restart: int, pause: float) -> None:
        total, undone = self._total, self._done - kept
        message, self._lost = str(self._lost), None
        self._log.emit(
            Rewound(
                from_step=self._done,
                to_step=kept,
                restart=restart,
                max_restarts=self._restarts.most,
                pause=pause,
                message=message,
            )
        )
        ledger = self._life.rewind(max(undone, 0))
        total.accuracies = {step: accuracy for step, accuracy in total.accuracies.items() if step <= kept}
        total.steps = kept - self._first_step
        total.steps_undone += max(undone, 0)
        total.counters = ledger.snapshot(in_flight=0, ready=0)
        self._done = kept
        due = kept == self._first_step or self._life.evaluates_after(kept)
        self._carried = Carried(ledger=ledger, evaluates_first=due and kept not in total.accuracies)

    def _add(self, life: Outcome) -> None:
        """Add a life's outcome to those of the lives before."""
        total = self._total
        total.accuracies |= life.accuracies
        total.accuracy_after = life.accuracy_after
        total.max_policy_age = max(total.max_policy_age, life.max_policy_age)
        total.steps = self._done - self._first_step
        total.first_step_at = life.first_step_at if total.first_step_at is None else total.first_step_at
        total.train_seconds = life.train_seconds or self._log.now() - self._life_began
        total.counters = life.counters
        total.checkpoint = life.checkpoint or total.checkpoint
        total.model_saved = life.model_saved
        total.ended = life.ended


def _first(group: BaseExceptionGroup[TrainerLost]) -> TrainerLost:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
