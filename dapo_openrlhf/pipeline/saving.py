"""Saves a run's checkpoints and its model (asyncio)."""

from __future__ import annotations

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Checkpointed
from dapo_openrlhf.pipeline.ports import CheckpointStore, PolicyTrainer
from dapo_openrlhf.pipeline.rollout import RolloutLoop


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

    async def checkpoint(self, step: int) -> str:
        """Write what a run needs to resume after ``step`` steps; returns the folder."""
        started = self._log.now()
        unfinished = self._checkpoints.begin(step)
        await self._trainer.save(unfinished)
        await self._trainer.save_state(unfinished)
        state = RunState(step=step, prompts=self._rollouts.prompt_state())
        path = await self._checkpoints.complete(state)
        self._log.emit(Checkpointed(step=step, path=path, seconds=self._log.now() - started))
        return path

    async def model(self, step: int) -> None:
        """Save the trained model after ``step`` steps."""
        started = self._log.now()
        await self._trainer.save(self._model_path)
        self._log.emit(Checkpointed(step=step, path=self._model_path, seconds=self._log.now() - started))
