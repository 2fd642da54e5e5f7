"""Saves a run's checkpoints and its model (asyncio).

A checkpoint holds up training only for its snapshot, a copy in the trainer's host memory. The copy is written while
training goes on; the next snapshot waits until it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.evaluation import Evaluations
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Checkpointed, SnapshotTaken
from dapo_openrlhf.pipeline.ports import CheckpointStore, PolicyTrainer
from dapo_openrlhf.pipeline.rollout import RolloutLoop
from dapo_openrlhf.pipeline.stop import GraceOver, StopRequest


class Saver:
    """Saves the trainer's and the controller's part of a run's state."""

    def __init__(
        self,
        *,
        trainer: PolicyTrainer,
        rollouts: RolloutLoop,
        checkpoints: CheckpointStore,
        model_path: str,
        log: EventLog,
    ) -> None:
        """``model_path``: folder for the trained model."""
        self._trainer = trainer
        self._rollouts = rollouts
        self._checkpoints = checkpoints
        self._model_path = model_path
        self._log = log
        self._writing: asyncio.Task[str] | None = None

    async def checkpoint(self, step: int) -> None:
        """Copy what a run needs to resume after ``step`` steps, and begin to write it; returns when training may go on.

        Waits for the previous checkpoint, and raises what that one failed with.
        """
        started = self._log.now()
        await self.written()
        unfinished = self._checkpoints.begin(step)
        try:
            await self._trainer.snapshot(unfinished)
        except BaseException:
            self._checkpoints.discard(step)
            raise
        state = RunState(step=step, prompts=self._rollouts.prompt_state())
        self._log.emit(SnapshotTaken(step=step, seconds=self._log.now() - started))
        self._writing = asyncio.create_task(self._write(state, started))

    async def written(self) -> str | None:
        """Wait until the newest checkpoint is complete and return its folder; None if there is none.

        Raises what it failed with. When this is cancelled, the writing goes on.
        """
        return None if self._writing is None else await asyncio.shield(self._writing)

    def evaluated(self, step: int, measured: Evaluations) -> None:
        """Take note of an evaluation of the weights after ``step`` steps, by which the best checkpoint is known."""
        self._checkpoints.evaluated(step, measured.values())

    @asynccontextmanager
    async def settling(self, stop: StopRequest) -> AsyncIterator[None]:
        """Let a checkpoint that is being written when the block ends be completed, within the grace period of a stop.

        It is also completed when the block raises; should it fail as well, the block's error is the one that counts.
        """
        try:
            yield
        finally:
            if self._writing is not None:
                try:
                    await stop.within_grace(asyncio.wait([self._writing]))
                except GraceOver:
                    self._writing.cancel()
                    await asyncio.wait([self._writing])

    async def model(self, step: int) -> None:
        """Save the trained model after ``step`` steps."""
        started = self._log.now()
        await self._trainer.save(self._model_path)
        self._log.emit(Checkpointed(step=step, path=self._model_path, seconds=self._log.now() - started))

    async def _write(self, state: RunState, started: float) -> str:
        try:
            await self._trainer.write_snapshot()
            path = await self._checkpoints.complete(state)
        except BaseException:
            self._checkpoints.discard(state.step)
            raise
        self._log.emit(Checkpointed(step=state.step, path=path, seconds=self._log.now() - started))
        return path
