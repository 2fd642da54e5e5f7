"""The engines that a weight sync serves: which are in service, how one is ended, and how a new one gets its weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dapo_openrlhf.backend.messages import IncompleteWeights, WeightAck
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerFailed, all_within
from dapo_openrlhf.backend.run.publishers.ranks import SETTING, StagedCopy
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine, start_again
from dapo_openrlhf.pipeline.ports import NotRevived, Publication
from dapo_openrlhf.types import Span


class EngineService:
    """Engines by index. One that fails a publication is ended, so that the pool replaces it."""

    def __init__(self, engines: Sequence[RemoteEngine], *, timeout: float, start_timeout: float) -> None:
        """``timeout``: seconds for loading a version. ``start_timeout``: seconds for a new engine's start."""
        self._engines = tuple(engines)
        self._in_service = set(range(len(engines)))
        self._timeout = timeout
        self._start_timeout = start_timeout

    def actors(self) -> dict[int, Any]:
        """The actors of the engines in service."""
        return {index: self._engines[index].actor for index in sorted(self._in_service)}

    def still(self, index: int, actor: Any) -> bool:
        """Whether this actor is the engine's, and in service: not one that has been replaced."""
        return index in self._in_service and self._engines[index].actor is actor

    def end(self, index: int, actor: Any, cause: str) -> None:
        """End an engine that failed or is late: it must not continue with older weights. Never ends its successor."""
        if self.still(index, actor):
            self._in_service.discard(index)
            self._engines[index].stop(cause, life=self._engines[index].life)

    async def start_again(self, index: int) -> None:
        """Start a new engine in place of one; it is not in service yet. Raises ``NotRevived``."""
        self._in_service.discard(index)
        self._engines[index].replace()
        try:
            await start_again(self._engines[index], f"engine {index}", self._start_timeout)
        except PipelineTimeout as error:
            raise NotRevived(str(error)) from error

    def put_in_service(self, index: int) -> None:
        """Say that a new engine has the newest weights."""
        self._in_service.add(index)

    async def load_all(self, copy: StagedCopy) -> tuple[Span, ...]:
        """Load a staged copy into every engine in service; one that fails is ended. Returns the engines' spans."""
        async with asyncio.TaskGroup() as tasks:
            loads = [tasks.create_task(self._load_or_end(*engine, copy)) for engine in self.actors().items()]
        return tuple(span for load in loads for span in load.result())

    async def _load_or_end(self, index: int, actor: Any, copy: StagedCopy) -> tuple[Span, ...]:
        if not self.still(index, actor):
            return ()  # its successor is in service only once it has the newest weights
        try:
            return await self._load(index, copy)
        except (PipelineTimeout, WorkerFailed) as error:
            if unfit(error):
                raise
            self.end(index, actor, str(error))
            return ()

    async def revived(self, index: int, copy: StagedCopy) -> None:
        """Load a staged copy into a new engine. Raises ``NotRevived``."""
        try:
            await self._load(index, copy)
        except (PipelineTimeout, WorkerFailed) as error:
            if unfit(error):
                raise
            raise NotRevived(str(error)) from error

    async def _load(self, index: int, copy: StagedCopy) -> tuple[Span, ...]:
        version = copy.publication.version
        call = self._engines[index].actor.load_weights.remote(version, copy.layout, *copy.buckets)
        what = f"loading the weights of version {version}"
        ack: WeightAck
        (ack,) = await all_within([call], [f"engine {index}"], self._timeout, what, SETTING)
        confirm(copy.publication, f"engine {index}", ack)
        return ack.spans


def unfit(error: BaseException) -> bool:
    """Whether weights and model do not fit, which another engine would not change."""
    return isinstance(error.__cause__, IncompleteWeights)


def confirm(publication: Publication, name: str, ack: WeightAck) -> None:
    """Raise ``RuntimeError`` unless an engine has loaded exactly the weights that were sent."""
    if (ack.version, ack.checksum) != (publication.version, publication.checksum):
        raise RuntimeError(
            f"{name} acknowledged version {ack.version} with checksum {ack.checksum:#018x}, but version "
            f"{publication.version} with checksum {publication.checksum:#018x} was sent: what it loaded is not what the "
            "trainer holds; run make gpu-check on that machine"
        )
