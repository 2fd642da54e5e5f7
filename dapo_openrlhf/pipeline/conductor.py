"""The conductor of a run (asyncio).

::

    prompts ──▶ rollout loop ──▶ engines ──▶ reward workers ──▶ group filter ──▶ rollout queue
                    ▲                                                                │ P groups, age ≤ K
                    │                                                                ▼
                  slots ◀── live in every engine ◀── deliver ◀── send ◀── trainer (U updates)

* The rollout loop consumes slots and prompts and produces groups; it waits for a slot only.
* The train loop consumes exact batches and produces weights; it waits for a batch, and before it sends weights for
  the previous ones to be live. Delivery runs beside the next step's training: the trainer's weights are read in
  ``send``, and only the engines are involved afterwards.
* An evaluation begins once the weights it measures are live and runs beside rollouts and the next step's training. It
  holds up the next ``send`` only: all its answers come from one version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.engine_pool import EnginePool
from dapo_openrlhf.pipeline.evaluation import Evaluation, Evaluator
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import BatchTaken, Checkpointed, Evaluated, PublicationLive, StepDone, StepTrained
from dapo_openrlhf.pipeline.ports import CheckpointStore, PolicyTrainer, Publication, WeightPublisher
from dapo_openrlhf.pipeline.rollout import RolloutLoop
from dapo_openrlhf.pipeline.rollout_queue import RolloutQueue
from dapo_openrlhf.types import PolicyVersion, TrainBatch

OnStep = Callable[[int], None]
OnEvaluation = Callable[[int, Evaluation], None]


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


class Pipeline:
    """Runs rollouts and training side by side for ``max_steps`` rollout steps."""

    def __init__(
        self,
        *,
        engines: EnginePool,
        rollouts: RolloutLoop,
        queue: RolloutQueue,
        trainer: PolicyTrainer,
        publisher: WeightPublisher,
        evaluator: Evaluator | None,
        log: EventLog,
        max_steps: int,
        eval_steps: int = -1,
        save_steps: int = -1,
        checkpoints: CheckpointStore,
        model_path: str,
        first_step: int = 0,
        agreement: Agreement,
        on_step: OnStep = lambda step: None,
        on_evaluation: OnEvaluation = lambda step, evaluation: None,
    ) -> None:
        """``model_path``: where the trained model goes. ``first_step``: rollout steps that an earlier run has done."""
        self._engines = engines
        self._rollouts = rollouts
        self._queue = queue
        self._trainer = trainer
        self._publisher = publisher
        self._evaluator = evaluator
        self._log = log
        self._max_steps = max_steps
        self._eval_steps = eval_steps
        self._save_steps = save_steps
        self._checkpoints = checkpoints
        self._model_path = model_path
        self._first_step = first_step
        self._agreement = agreement
        self._on_step = on_step
        self._on_evaluation = on_evaluation
        self._delivery: Awaitable[None] | None = None
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Train, save, evaluate. Raises the first error of either loop, with the other one stopped."""
        outcome = self.outcome
        async with asyncio.TaskGroup() as tasks:
            supervision = tasks.create_task(self._engines.supervise())
            before = self._evaluation = tasks.create_task(self._evaluate(self._first_step, live=None))
            started = self._log.now()
            rollouts = tasks.create_task(self._rollouts.run())
            self._tasks, self._laps = tasks, Laps(self._log.now)
            for step in range(self._first_step, self._max_steps):
                await self._step(step)
            await self._went_live()
            outcome.train_seconds = self._log.now() - started
            if self._save_steps > 0:
                await self._save_checkpoint(self._max_steps)
            outcome.counters = self._queue.counters()
            rollouts.cancel()
            await asyncio.wait([rollouts])
            await self._save_model(self._max_steps)
            outcome.accuracy_after = await self._evaluate(self._max_steps, live=None)
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
        self._on_step(step)

    async def _between_steps(self, done: int) -> None:
        if done == self._max_steps:
            return  # evaluated and saved at the end
        if self._eval_steps > 0 and done % self._eval_steps == 0:
            self._evaluation = self._tasks.create_task(self._evaluate(done, live=self._delivery))
        if self._save_steps > 0 and done % self._save_steps == 0:
            await self._save_checkpoint(done)
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
            )
        )
        self._on_evaluation(step, measured)
        return measured.accuracy.value

    async def _save_checkpoint(self, step: int) -> None:
        started = self._log.now()
        unfinished = self._checkpoints.begin(step)
        await self._trainer.save(unfinished)
        await self._trainer.save_state(unfinished)
        state = RunState(step=step, prompts=self._rollouts.prompt_state())
        path = await asyncio.to_thread(self._checkpoints.finish, state)  # reads all files once more
        self._log.emit(Checkpointed(step=step, path=path, seconds=self._log.now() - started))

    async def _save_model(self, step: int) -> None:
        started = self._log.now()
        await self._trainer.save(self._model_path)
        self._log.emit(Checkpointed(step=step, path=self._model_path, seconds=self._log.now() - started))

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
