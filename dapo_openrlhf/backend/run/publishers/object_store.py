"""Weight sync through Ray's object store, seen from the controller: staged once, read by every engine."""

from __future__ import annotations

from dapo_openrlhf.backend.run.publishers.ranks import Ranks, StagedCopy
from dapo_openrlhf.backend.run.publishers.service import EngineService
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.types import PolicyVersion


class ObjectStorePublisher:
    """A ``WeightPublisher`` and an ``EngineReviver`` through the object store.

    The newest weights stay there, and a replaced engine loads them before it is in service.
    """

    def __init__(self, ranks: Ranks, engines: EngineService, *, on_spans: OnSpans = lambda spans: None) -> None:
        self._ranks = ranks
        self._engines = engines
        self._on_spans = on_spans
        self._newest: StagedCopy | None = None

    async def send(self, version: PolicyVersion) -> Publication:
        """Stage the weights; the trainer is free afterwards."""
        copy = await self._ranks.stage(f"packing the weights of version {version}")
        self._newest = copy.named(version)
        return self._newest.publication

    async def deliver(self, publication: Publication) -> None:
        """Load the weights into every engine in service.

        An engine that dies, is late or fails is ended, and gets the newest weights when it is replaced.
        """
        assert self._newest is not None
        self._on_spans(await self._engines.load_all(self._newest))

    async def revive(self, engine: int) -> None:
        """Replace an engine; returns once the new one generates with the newest weights. Raises ``NotRevived``."""
        await self._engines.start_again(engine)
        loaded = None  # an engine that starts before the first publication has the newest weights
        while self._newest is not loaded:  # a publication may begin while the last one is loaded
            loaded = self._newest
            assert loaded is not None
            await self._engines.revived(engine, loaded)
        self._engines.put_in_service(engine)
