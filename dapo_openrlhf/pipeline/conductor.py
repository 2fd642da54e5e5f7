"""The conductor of a run (asyncio).

::

    prompts ──▶ rollout loop ──▶ engines ──▶ reward workers ──▶ group filter ──▶ rollout queue
                    ▲                                                                │ P groups, age ≤ K
                    │                                                                ▼
                  slots ◀── live in every engine ◀── deliver ◀── send ◀── trainer (U updates)

* The rollout loop consumes slots and prompts and produces groups; it waits only for a slot.
* The train loop consumes exact batches and produces weights; it waits for a batch, and before it sends weights (the
  weight sync) for the previous ones to be live. Delivery runs beside the next step's training: the trainer's weights are read in
  ``send``, and only the engines are involved afterwards.
* An evaluation begins once the weights it measures are live and runs beside rollouts and the next step's training. It
  holds up the next ``send`` only: all its answers come from one version.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.engine_pool import EnginePool, EngineUnusable
from dapo_openrlhf.pipeline.evaluator import Evaluator, evaluated
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import BatchTaken, PublicationLive, StepDone, StepTrained
from dapo_openrlhf.pipeline.laps import Laps
from dapo_openrlhf.pipeline.ledger import Ledger
from dapo_openrlhf.pipeline.ports import PolicyTrainer, Publication, WeightPublisher
from dapo_openrlhf.pipeline.rollout import RolloutLoop
from dapo_openrlhf.pipeline.saving import Saver
from dapo_openrlhf.pipeline.schedule import Schedule
from dapo_openrlhf.pipeline.stop import GraceOver, StopAsked, StopRequest
from dapo_openrlhf.types import PolicyVersion, TrainBatch


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of a run. Times are seconds on the event log's clock."""

    accuracy_before: float | None = None
    accuracy_after: float | None = None
    accuracies: dict[int, float] = field(default_factory=dict)
    """Held-out accuracy by the number of rollout steps done, where it was measured."""
    max_policy_age: int = 0
    steps: int = 0
    """Number of rollout steps done, without those of an earlier run and those that a rewind has undone."""
    restarts: int = 0
    """Number of times that the trainer was lost and a new one went on."""
    steps_undone: int = 0
    """Number of rollout steps that rewinds have undone."""
    first_step_at: float | None = None
    train_seconds: float = 0.0
    """Time from the first dispatch to the last publication, evaluation in between included."""
    counters: dict[str, int | dict[str, int]] = field(default_factory=dict)
    checkpoint: str | None = None
    """The newest checkpoint to resume from that this run has made."""
    model_saved: bool = False
    """Whether the trained model was saved; it is not in a run that was stopped."""
    ended: str = ""
    """Why the run ended before its last step, though nothing stopped it; empty if it did not."""
    stopped_by: signal.Signals | None = None
    """The signal that stopped the run early; None if none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The trainer's side of a run."""

    trainer: PolicyTrainer
    publisher: WeightPublisher
    agreement: Agreement
    """Stops the run where engines and trainer are not the same policy."""


class Pipeline:
    """Runs rollouts and training concurrently for the schedule's rollout steps."""

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
        self._delivery: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._saved: int | None = None
        self._unusable: BaseException | None = None
        self.outcome = Outcome()

    @property
    def first_step(self) -> int:
        """Number of rollout steps that were done before."""
        return self._schedule.first_step

    def evaluates_after(self, steps: int) -> bool:
        """Whether the weights after that number of steps are measured in the course of the run."""
        return self._schedule.evaluate_after(steps)

    def rewind(self, steps: int) -> Ledger:
        """Undo the last ``steps`` steps after :meth:`run` has ended with the loss of the trainer.

        Groups in flight and in the queue are dropped as well. Returns the counters to go on with.
        """
        return self._queue.rewind(steps)

    async def run(self, stop: StopRequest | None = None) -> Outcome:
        """Train, save, evaluate. Raises the first error of either loop, after stopping the other one.

        When ``stop`` is asked for, or no engine is left, it finishes the step in training, makes a checkpoint and leaves
        the rest undone. Raises :class:`EngineUnusable` if no engine is left.
        """
        self._stop = stop or StopRequest(grace=0.0)
        schedule = self._schedule
        async with self._saver.settling(self._stop), asyncio.TaskGroup() as tasks:
            supervision = tasks.create_task(self._supervise())
            self._watch = tasks.create_task(self._trainer.supervise())
            before = self._evaluation = tasks.create_task(self._evaluate_first())
            self._started = self._log.now()
            rollouts = tasks.create_task(self._rollouts.run())
            self._tasks, self._laps = tasks, Laps(self._log.now)
            try:
                for step in schedule.steps:
                    await self._step(step)
                    if ended := schedule.ending.reason(self._log.now()):
                        self.outcome.ended = ended if step + 1 < schedule.max_steps else ""
                        break
                await self._finish(rollouts)
            except (StopAsked, GraceOver):
                await self._keep()
            watches = (supervision, self._watch)
            for task in (rollouts, before, self._evaluation, self._delivery, self._writing, *watches):
                if task is not None:
                    task.cancel()
        if self._unusable is not None:
            raise EngineUnusable(f"{self._unusable}; {self._kept()}")
        self.outcome.accuracy_before = None if before.cancelled() else before.result()
        return self.outcome

    async def _supervise(self) -> None:
        try:
            await self._engines.supervise()
        except* EngineUnusable as errors:
            self._unusable = errors.exceptions[0]
            self._stop.ask_without_deadline()

    def _kept(self) -> str:
        """What a run that could not go on leaves, for its last message."""
        if self.outcome.model_saved:
            return "all steps are done and the model is saved, only its evaluation is missing"
        if self.outcome.checkpoint is None:
            return "no step was done since the last checkpoint; --resume goes on from it"
        return f"{self.outcome.steps} steps of this run are kept in {self.outcome.checkpoint}; --resume goes on from it"

    async def _finish(self, rollouts: asyncio.Task[None]) -> None:
        """Do what follows the last step."""
        outcome, stop = self.outcome, self._stop
        steps = self._schedule.first_step + outcome.steps
        await stop.unless_asked(self._went_live())
        outcome.train_seconds = self._log.now() - self._started
        if self._schedule.saves or outcome.ended:
            await self._save(steps)
        await stop.within_grace(self._written())
        outcome.counters = self._queue.counters()
        rollouts.cancel()
        await asyncio.wait([rollouts])
        await stop.within_grace(self._saver.model(steps))
        outcome.model_saved = True
        self._watch.cancel()  # what is left does not need the trainer
        outcome.accuracy_after = await stop.unless_asked(self._evaluate(steps, live=None))

    async def _keep(self) -> None:
        """Make a checkpoint of what this run has learned, if there is time for it."""
        outcome = self.outcome
        outcome.train_seconds = self._log.now() - self._started
        outcome.counters = self._queue.counters()
        with contextlib.suppress(GraceOver):
            if outcome.steps and not outcome.model_saved:
                await self._save(self._schedule.first_step + outcome.steps)
            await self._stop.within_grace(self._written())

    async def _step(self, step: int) -> None:
        laps = self._laps
        batch = await self._next_batch(step)
        self._log.emit(self._batch_taken(batch, waited=laps.lap("wait_batch")))
        self.outcome.max_policy_age = max(self.outcome.max_policy_age, *batch.ages)
        statistics = await self._stop.within_grace(self._trainer.train(batch))
        self._queue.trained(batch)
        self._log.emit(StepTrained(step=step, seconds=laps.lap("train"), statistics=statistics))
        self._agreement.check(step, statistics)
        self.outcome.steps += 1
        with contextlib.suppress(StopAsked):
            self._stop.check()
            await self._publish(PolicyVersion(batch.version + 1))
            await self._between_steps(step + 1)
        if self.outcome.first_step_at is None:
            self.outcome.first_step_at = self._log.now()
        self._log.emit(StepDone(step=step, laps=laps.take()))
        self._stop.check()

    async def _next_batch(self, step: int) -> TrainBatch:
        """Wait for the step's batch; meanwhile the trainer is idle, and makes the checkpoint if one was asked for.

        A batch that was taken must be trained, since its prompts would be in no checkpoint.
        """
        while True:
            taking = asyncio.ensure_future(self._queue.take(step))
            try:
                await self._stop.unless_asked(self._stop.save_wanted_before(taking))
            except StopAsked:
                if not taking.done() or taking.cancelled():
                    raise
            if taking.done():
                return taking.result()
            taking.cancel()
            await asyncio.wait([taking])
            await self._save_if_asked(step)

    async def _publish(self, version: PolicyVersion) -> None:
        """Send the trained weights once the previous ones are no longer needed."""
        laps, stop = self._laps, self._stop
        await stop.unless_asked(self._went_live())
        laps.lap("wait_live")
        await stop.unless_asked(self._evaluation)  # a measurement ends before the weights it measures are replaced
        laps.lap("evaluate")
        started = self._log.now()
        publication = await stop.within_grace(self._publisher.send(version))
        self._delivery = self._tasks.create_task(self._deliver(publication, started))
        laps.lap("send")

    async def _between_steps(self, done: int) -> None:
        if self._schedule.evaluate_after(done):
            self._evaluation = self._tasks.create_task(self._evaluate(done, live=self._delivery))
        if self._schedule.save_after(done):
            await self._save(done)
        await self._save_if_asked(done)

    async def _save_if_asked(self, done: int) -> None:
        if self._stop.save_wanted:
            if self.outcome.steps:
                await self._save(done)
                await self._stop.within_grace(self._written())
            self._stop.saved()

    async def _save(self, done: int) -> None:
        """Make a checkpoint of ``done`` steps, unless there is one; it is written while training goes on."""
        if self._saved != done:
            await self._stop.within_grace(self._saver.checkpoint(done))
            self._saved = done
            self._writing = self._tasks.create_task(self._written())
            self._laps.lap("save")

    async def _written(self) -> None:
        """Wait until the newest checkpoint is complete."""
        if (path := await self._saver.written()) is not None:
            self.outcome.checkpoint = path

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

    async def _evaluate_first(self) -> float | None:
        return await self._evaluate(self.first_step, live=None) if self._schedule.evaluates_first else None

    async def _evaluate(self, step: int, *, live: Awaitable[None] | None) -> float | None:
        """Measure the weights that are live now, or that will be once ``live`` is done."""
        if self._evaluator is None:
            return None
        if live is not None:
            await live
        started = self._log.now()
        version = self._queue.live_version
        measured = await self._evaluator.measure()
        self._saver.evaluated(step, measured)
        self._schedule.ending.measured(step, measured.values())
        self._log.emit(evaluated(measured, step=step, version=version, seconds=self._log.now() - started))
        accuracy = self.outcome.accuracies[step] = measured.first.accuracy.value
        return accuracy

    def _batch_taken(self, batch: TrainBatch, *, waited: float) -> BatchTaken:
        rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
        return BatchTaken(
            step=batch.step,
            version=batch.version,
            groups=tuple(group.id for group in batch.groups),
            ages=batch.ages,
            token_ages=batch.token_ages,
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
