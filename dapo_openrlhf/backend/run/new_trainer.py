"""Replaces a lost trainer within a run, in the way in which ``--resume`` starts one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import ray

from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.publishers.opening import Publisher, publish_once
from dapo_openrlhf.backend.run.rank_watch import RankWatch
from dapo_openrlhf.backend.run.workers import Workers, replace_ranks
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, RunState
from dapo_openrlhf.pipeline.conductor import Pipeline
from dapo_openrlhf.pipeline.lives import Carried
from dapo_openrlhf.types import PolicyVersion


class BuildPipeline(Protocol):
    """Connects the loops to workers."""

    def __call__(self, workers: Workers, publisher: Publisher, inputs: Inputs, carried: Carried) -> Pipeline:
        """The pipeline of one life, which begins where ``inputs`` says."""
        ...


@dataclass(slots=True, kw_only=True)
class NewTrainer:
    """A ``TrainerSource`` for a run's workers."""

    config: Config
    inputs: Inputs
    """Where the next trainer begins: at first where the run began, later at the chosen checkpoint."""
    workers: Workers
    checkpoints: Checkpoints
    open_publisher: Callable[[Workers], Awaitable[Publisher]]
    build: BuildPipeline
    say: Callable[[str], None]

    async def first(self) -> Pipeline:
        """The pipeline of the first life, once the weights that the engines have started with are published."""
        return self.build(self.workers, await self._published(), self.inputs, Carried())

    async def end(self) -> None:
        """Kill every rank.

        Ray ends one that hangs after a few seconds, and gives its place to a new one only once its process is gone.
        """
        for rank in self.workers.ranks:
            ray.kill(rank)

    async def newest(self) -> int:
        """Choose the newest good checkpoint, or the start where there is none; returns its number of steps.

        Raises ``RuntimeError`` if the run was resumed and every checkpoint has been damaged since then.
        """
        good = await asyncio.to_thread(self.checkpoints.newest_good, self.say)
        if good is not None:
            self.inputs = replace(self.inputs, checkpoint=good, state=RunState.read(good))
        elif self.inputs.checkpoint is not None:
            raise RuntimeError(
                f"the trainer is lost, and {self.inputs.checkpoint} and all other checkpoints are damaged"
            )
        return self.inputs.first_step

    async def begin(self, carried: Carried) -> Pipeline:
        """Start new ranks from the checkpoint and publish their weights once. Raises ``TrainerLost``."""
        await replace_ranks(self.config, self.inputs, self.workers)
        publisher = await RankWatch(self.workers.ranks).during(self._published())
        return self.build(self.workers, publisher, self.inputs, carried)

    async def _published(self) -> Publisher:
        publisher = await self.open_publisher(self.workers)
        await publish_once(publisher, PolicyVersion(self.inputs.first_step))
        return publisher
