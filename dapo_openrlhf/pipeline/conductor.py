"""The conductor of a run (asyncio).

::

    prompts ──▶ rollout loop ──▶ engines ──▶ reward workers ──▶ group filter ──▶ rollout queue
                    ▲                                                                │ P groups, age ≤ K
                    │                                                                ▼
                  slots ◀── live in every engine ◀── deliver ◀── send ◀── trainer (U updates)

* The rollout loop consumes slots and prompts and produces groups; it waits for a slot only.
* The train loop consumes exact batches and produces weights; it waits for a batch, and before it sends weights (the
  weight sync) for the previous ones to be live. Delivery runs beside the next step's training: the trainer's weights are read in
  ``send``, and only the engines are involved afterwards.
* An evaluation begins once the weights it measures are live and runs beside rollouts and the next step's training. It
  holds up the next ``send`` only: all its answers come from one version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.engine_pool import EnginePool
from dapo_openrlhf.pipeline.evaluator import Evaluator
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import BatchTaken, Evaluated, PublicationLive, StepDone, StepTrained
from dapo_openrlhf.pipeline.ports import PolicyTrainer, Publication, WeightPublisher
from dapo_openrlhf.pipeline.rollout import RolloutLoop
from dapo_openrlhf.pipeline.saving import Saver
from dapo_openrlhf.pipeline.schedule import Schedule
from dapo_openrlhf.types import PolicyVersion, TrainBatch


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run came to. Times are seconds on the event log's clock."""

    accuracy_before: float | None = None
    accuracy_after: float | None = None
    max_policy_age: int = 0
    steps: int = 0
    """Rollout steps done, without those of an earlier run."""
    first_step_at: float | None = None
    train_seconds: float = 0.0
    """From the first dispatch to the last publication, evaluation in between included."""
    counters: dict[str, int | dict[str, int]] = field(default_factory=dict)


class Laps:
    """A stopwatch that never stops: every moment belongs to exactly one lap."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> float:
        """Credit the time since the last call to ``name``; returns it, in seconds."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        self._laps[name] = self._laps.get(name, 0.0) + seconds
        return seconds

    def take(self) -> dict[str, float]:
        """The laps since the last call, and start anew."""
        laps, self._laps = self._laps, {}
        return laps


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The trainer's side of a run."""

    trainer: PolicyTrainer
    publisher: WeightPublisher
    agreement: Agreement
    """Stops the run where engines and trainer are not the same policy."""


class Pipeline:
    """Runs rollouts and training side by side for the schedule's rollout steps."""

    def __init__(
        self,
        *,
        engines: EnginePool,
        rollouts: RolloutLoop,
        training: Training,
        evaluator: Evaluator | None,
        saver: Saver,
        schedule: Schedule,
        log: EventLog,
    ) -> None:
        self._engines = engines
        self._rollouts = rollouts
        self._queue = rollouts.queue
        self._trainer = training.trainer
        self._publisher = training.publisher
        self._agreement = training.agreement
        self._evaluator = evaluator
        self._saver = saver
        self._schedule = schedule
        self._log = log
        self._delivery: Awaitable[None] | None = None
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Train, save, evaluate. Raises the first error of either loop, with the other one stopped."""
        outcome, schedule = self.outcome, self._schedule
        async with asyncio.TaskGroup() as tasks:
            supervision = tasks.create_task(self._engines.supervise())
            before = self._evaluation = tasks.create_task(self._evaluate(schedule.first_step, live=None))
            started = self._log.now()
            rollouts = tasks.create_task(self._rollouts.run())
            self._tasks, self._laps = tasks, Laps(self._log.now)
            for step in schedule.steps:
                await self._step(step)
            await self._went_live()
            outcome.train_seconds = self._log.now() - started
            if schedule.saves:
                await self._saver.checkpoint(schedule.max_steps)
            outcome.counters = self._queue.counters()
            rollouts.cancel()
            await asyncio.wait([rollouts])
            await self._saver.model(schedule.max_steps)
            outcome.accuracy_after = await self._evaluate(schedule.max_steps, live=None)
            supervision.cancel()
        outcome.accuracy_before = before.result()
        return outcome

    async def _step(self, step: int) -> None:
        laps = self._laps
        batch = await self._queue.take(step)
        self._log.emit(self._batch_taken(batch, waited=laps.lap("wait_batch")))
        self.outcome.max_policy_age = max(self.outcome.max_policy_age, *batch.ages)
        statistics = await self._trainer.train(batch)
        self._queue.trained(batch)
        self._log.emit(StepTrained(step=step, seconds=laps.lap("train"), statistics=statistics))
        self._agreement.check(step, statistics)
        await self._went_live()
        laps.lap("wait_live")
        await self._evaluation  # a measurement ends before the weights it measures are replaced
        laps.lap("evaluate")
        started = self._log.now()
        publication = await self._publisher.send(PolicyVersion(batch.version + 1))
        self._delivery = self._tasks.create_task(self._deliver(publication, started))
        laps.lap("send")
        self.outcome.steps += 1
        if self.outcome.first_step_at is None:
            self.outcome.first_step_at = self._log.now()
        await self._between_steps(step + 1)
        self._log.emit(StepDone(step=step, laps=laps.take()))

    async def _between_steps(self, done: int) -> None:
        if self._schedule.evaluate_after(done):
            self._evaluation = self._tasks.create_task(self._evaluate(done, live=self._delivery))
        if self._schedule.save_after(done):
            await self._saver.checkpoint(done)
            self._laps.lap("save")

    async def _deliver(self, publication: Publication, started: float) -> None:
        await self._publisher.deliver(publication)
        self._queue.publication_live(publication.version)
        self._log.emit(
            PublicationLive(
                version=publication.version,
                seconds=self._log.now() - started,
                bytes=publication.bytes,
                checksum=publication.checksum,
            )
        )

    async def _went_live(self) -> None:
        if self._delivery is not None:
            await self._delivery
            self._delivery = None

    async def _evaluate(self, step: int, *, live: Awaitable[None] | None) -> float | None:
        """Measure the weights that are live now, or will be once ``live`` is over."""
        if self._evaluator is None:
            return None
        if live is not None:
            await live
        started = self._log.now()
        version = self._queue.live_version
        measured = await self._evaluator.measure()
        self._log.emit(
            Evaluated(
                step=step,
                version=version,
                accuracy=measured.accuracy.value,
                problems=len(measured.results),
                responses=len(measured.responses),
                errors=measured.errors,
                estimates={name: estimate.value for name, estimate in measured.estimates().items()},
                seconds=self._log.now() - started,
                measured=measured,
            )
        )
        return measured.accuracy.value

    def _batch_taken(self, batch: TrainBatch, *, waited: float) -> BatchTaken:
        rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
        return BatchTaken(
            step=batch.step,
            version=batch.version,
            groups=tuple(group.id for group in batch.groups),
            ages=batch.ages,
            waited=waited,
            reward=sum(rollout.reward for rollout in rollouts) / len(rollouts),
            accuracy=sum(rollout.correct for rollout in rollouts) / len(rollouts),
            responses=len(rollouts),
            response_tokens=sum(rollout.length for rollout in rollouts),
            longest_response=max(rollout.length for rollout in rollouts),
            truncated=sum(rollout.truncated for rollout in rollouts),
            cut=sum(rollout.cut for rollout in rollouts),
            cut_tokens=sum(rollout.length for rollout in rollouts if rollout.cut),
            in_flight=self._queue.in_flight,
            ready=self._queue.ready,
            free_slots=self._queue.free_slots,
            over_sampled=self._queue.over_sampled,
            training_slots=self._queue.training_slots,
        )
