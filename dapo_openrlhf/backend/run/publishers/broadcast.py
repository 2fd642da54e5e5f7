"""Weight sync by broadcasts within transfer groups, seen from the controller: ``nccl``, ``gloo`` and ``ipc``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from ray.exceptions import RayError

from dapo_openrlhf.backend.messages import IncompleteWeights, WeightAck
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerDied, WorkerFailed
from dapo_openrlhf.backend.run.publishers.groups import TransferGroups, engine_name
from dapo_openrlhf.backend.run.publishers.members import Limits, Round, held
from dapo_openrlhf.backend.run.publishers.ranks import SETTING, Ranks, StagedCopy
from dapo_openrlhf.backend.run.publishers.service import EngineService, confirm
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.pipeline.ports import NotRevived, Publication
from dapo_openrlhf.types import PolicyVersion

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Broadcasts of one version that may be given up before it goes through the object store."""
ASKING_SECONDS = 10.0
"""Seconds that a late engine has to say what it is doing."""


class BroadcastPublisher:
    """A ``WeightPublisher`` and an ``EngineReviver``.

    Both ends take part in a broadcast, so ``send`` returns once every engine has the weights. A broadcast that a member's
    death or hang has stuck is given up by all; the groups are formed anew of those left, and the version is sent again. A
    replaced engine loads the newest weights through the object store, and joins before the next version is sent.
    """

    def __init__(
        self,
        ranks: Ranks,
        engines: EngineService,
        groups: TransferGroups,
        *,
        limits: Limits,
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        self._ranks = ranks
        self._engines = engines
        self._groups = groups
        self._limits = limits
        self._on_spans = on_spans
        self._sent: PolicyVersion | None = None
        self._copy: StagedCopy | None = None
        self._acks: dict[str, WeightAck] = {}

    async def send(self, version: PolicyVersion) -> Publication:
        """Send the weights to every engine in service, or stage them in the object store while there is none."""
        self._sent, self._copy, self._acks = version, None, {}
        for _ in range(ATTEMPTS):
            engines = self._engines.actors()
            if not engines:
                break
            if not self._groups.consist_of(engines) and not await self._form(engines):
                continue
            publication = await self._broadcast(version, engines)
            if publication is not None:
                return publication
        else:
            logger.warning("version %s was sent %s times in vain; it goes through the object store", version, ATTEMPTS)
        copy = await self._ranks.stage(f"packing the weights of version {version}")
        self._copy = copy.named(version)
        return self._copy.publication

    async def deliver(self, publication: Publication) -> None:
        """Check the engines' acknowledgements, or load what was staged into every engine in service."""
        if self._copy is not None:
            self._on_spans(await self._engines.load_all(self._copy))
            return
        for name, ack in self._acks.items():
            confirm(publication, name, ack)
        self._on_spans(tuple(span for ack in self._acks.values() for span in ack.spans))

    async def revive(self, engine: int) -> None:
        """Replace an engine; returns once the new one generates with the newest weights. Raises ``NotRevived``.

        What the ranks hold may already be the version that is sent next; the engine then says so.
        """
        await self._engines.start_again(engine)
        loaded = -1
        while self._sent is not None and loaded < self._sent:  # another version may be sent meanwhile
            copy = self._copy or await self._staged_for(engine)
            await self._engines.revived(engine, copy)
            loaded = copy.publication.version
        self._engines.put_in_service(engine)

    async def _staged_for(self, engine: int) -> StagedCopy:
        try:
            return await self._ranks.stage(f"packing the newest weights for engine {engine}")
        except (PipelineTimeout, WorkerDied) as error:
            raise NotRevived(str(error)) from error

    async def _form(self, engines: Mapping[int, Any]) -> bool:
        """Form groups of the ranks and these engines; returns whether all have joined."""
        calls = self._groups.joining(self._ranks, engines)
        outcome = await self._round(calls, engines, "forming the transfer group")
        if len(outcome.results) < len(calls):
            return False
        self._groups.formed(engines)
        return True

    async def _broadcast(self, version: PolicyVersion, engines: Mapping[int, Any]) -> Publication | None:
        """Send the weights to these engines; None if it was given up, or an engine in service does not have them."""
        layout = await self._ranks.layout()
        calls: dict[str, Awaitable[Any]] = {
            engine_name(index): actor.receive_weights.remote(version, layout) for index, actor in engines.items()
        }
        calls |= {
            name: rank.send_weights.remote() for name, rank in zip(self._ranks.names, self._ranks.actors, strict=True)
        }
        outcome = await self._round(calls, engines, f"sending the weights of version {version}")
        left = [engine_name(index) for index, actor in engines.items() if self._engines.still(index, actor)]
        if not left or any(name not in outcome.results for name in (*left, *self._ranks.names)):
            return None
        sums = {name: outcome.results[name] for name in self._ranks.names if outcome.results[name] is not None}
        if len(set(sums.values())) != 1:
            raise RuntimeError(f"trainer ranks hold different weights of version {version}: checksums {sums}")
        self._acks = {name: outcome.results[name] for name in left}
        return Publication(version=version, bytes=layout.bytes, checksum=next(iter(sums.values())))

    async def _round(self, calls: Mapping[str, Awaitable[Any]], engines: Mapping[int, Any], what: str) -> Round:
        """Hold a round, and end the engines that failed in it. Raises for a trainer rank, and for unfit weights."""
        outcome = await held(calls, self._limits, abort=self._groups.abort, what=what)
        for name in self._ranks.names:
            self._refuse(name, outcome, what)
        for error in outcome.failed.values():
            if isinstance(error, IncompleteWeights):
                raise WorkerFailed(f"{what}: {error}") from error
        for index, actor in engines.items():
            if (cause := await self._cause(engine_name(index), actor, outcome, what)) is not None:
                self._groups.dissolve()
                self._engines.end(index, actor, cause)
        return outcome

    def _refuse(self, rank: str, outcome: Round, what: str) -> None:
        if rank in outcome.died:
            raise WorkerDied(f"{what}: {rank} died: {outcome.died[rank]}") from outcome.died[rank]
        if rank in outcome.failed:
            raise WorkerFailed(f"{what}: {rank} failed: {outcome.failed[rank]}") from outcome.failed[rank]
        if rank in outcome.late:
            late = ", ".join(sorted(outcome.late))
            raise PipelineTimeout(f"{what}: {late} did not answer within {self._limits.timeout:g} s ({SETTING})")

    async def _cause(self, name: str, actor: Any, outcome: Round, what: str) -> str | None:
        """Why an engine has to be ended, or None."""
        if name in outcome.died:
            return f"{what}: {name} died: {outcome.died[name]}"
        if name in outcome.failed:
            return f"{what}: {name} failed: {outcome.failed[name]}"
        if name in outcome.late:
            limit = f"{self._limits.timeout:g} s ({SETTING})"
            return f"{what}: {name} did not answer within {limit}; it {await _said(actor)}"
        return None


async def _said(actor: Any) -> str:
    """What a late engine says that it does."""
    try:
        async with asyncio.timeout(ASKING_SECONDS):
            return f"says that it is {await actor.phase.remote()}"
    except TimeoutError:
        return f"gives no answer within {ASKING_SECONDS:g} s: its process hangs"
    except RayError as error:
        return f"is gone ({type(error).__name__})"
