"""Weight sync through Ray's object store, seen from the controller: packed once, read by every engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from dapo_openrlhf.backend.messages import WeightAck, WeightManifest
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerDied, WorkerFailed, all_within
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine, start_again
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.pipeline.ports import NotRevived, Publication
from dapo_openrlhf.types import PolicyVersion, Span


class ObjectStorePublisher:
    """A ``WeightPublisher`` through the object store.

    It is also an ``EngineReviver``: the newest weights stay in the object store, and a replaced engine loads them
    before it is in service.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        engines: Sequence[RemoteEngine],
        *,
        timeout: float,
        start_timeout: float,
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        """``timeout``: seconds for each phase of a publication. ``start_timeout``: seconds for a new engine's start."""
        self._ranks = tuple(ranks)
        self._engines = tuple(engines)
        self._in_service = set(range(len(engines)))
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._on_spans = on_spans
        self._newest: tuple[Publication, WeightManifest, ray.ObjectRef[Any]] | None = None

    async def send(self, version: PolicyVersion) -> Publication:
        """Pack the weights; the trainer is free afterwards."""
        calls = [rank.export_weights.options(num_returns=2).remote() for rank in self._ranks]
        names = [f"trainer rank {rank}" for rank in range(len(self._ranks))]
        what = f"packing the weights of version {version}"
        refs = [manifest for manifest, _ in calls]
        manifest: WeightManifest = (await all_within(refs, names, self._timeout, what, "async.publish_timeout"))[0]
        publication = Publication(version=version, bytes=manifest.bytes, checksum=manifest.checksum)
        self._newest = publication, manifest, calls[0][1]
        return publication

    async def deliver(self, publication: Publication) -> None:
        """Load the weights into every engine in service.

        An engine that dies or is late gets the newest weights when it is replaced.
        """
        lives = {index: self._engines[index].life for index in sorted(self._in_service)}
        async with asyncio.TaskGroup() as tasks:
            loads = [tasks.create_task(self._load_or_stop(index, life)) for index, life in lives.items()]
        self._on_spans(tuple(span for load in loads for span in load.result()))

    async def revive(self, engine: int) -> None:
        """Replace an engine; returns once the new one generates with the newest weights. Raises ``NotRevived``."""
        self._in_service.discard(engine)
        self._engines[engine].replace()
        await start_again(self._engines[engine], f"engine {engine}", self._start_timeout)
        try:
            loaded = None
            while self._newest is not loaded:  # a publication may begin while the last one is loaded
                loaded = self._newest
                await self._load(engine)
        except (WorkerFailed, PipelineTimeout) as error:
            raise NotRevived(str(error)) from error
        self._in_service.add(engine)

    async def _load_or_stop(self, index: int, life: int) -> tuple[Span, ...]:
        """Load the weights, or stop an engine that hangs or is unreachable: it must not continue with older weights.

        An engine in a later life than ``life`` is left alone, since it is replaced with the newest weights.
        """
        engine = self._engines[index]
        try:
            return await self._load(index) if engine.life == life else ()
        except (PipelineTimeout, WorkerDied) as error:
            if engine.stop(str(error), life=life):
                self._in_service.discard(index)
            return ()

    async def _load(self, index: int) -> tuple[Span, ...]:
        """Load the newest weights into one engine and check its acknowledgement; returns the spans that it reports."""
        if self._newest is None:  # the engine started with the newest weights
            return ()
        publication, manifest, buffer = self._newest
        what = f"loading the weights of version {publication.version}"
        call = self._engines[index].actor.load_weights.remote(publication.version, manifest, buffer)
        ack: WeightAck
        (ack,) = await all_within([call], [f"engine {index}"], self._timeout, what, "async.publish_timeout")
        if (ack.version, ack.checksum) != (publication.version, publication.checksum):
            raise RuntimeError(
                f"engine {index} acknowledged version {ack.version} with checksum {ack.checksum}, expected {publication}"
            )
        return ack.spans
