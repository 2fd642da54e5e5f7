"""Weight sync on shared GPUs, seen from the controller: each engine reads the memory of the trainer rank on its GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from dapo_openrlhf.backend.messages import PACKED, StagedWeights, WeightAck, WeightLayout
from dapo_openrlhf.backend.run.publishers.parties import Parties, confirm
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.types import PolicyVersion


class IpcPublisher:
    """A ``WeightPublisher`` for engines that share their GPUs with trainer ranks."""

    def __init__(self, parties: Parties, layout: WeightLayout, *, on_spans: OnSpans) -> None:
        """Both sides must have been prepared; see :meth:`open`."""
        self._parties = parties
        self._layout = layout
        self._on_spans = on_spans
        self._handles: dict[str, tuple[Any, ...]] = {}

    @classmethod
    async def open(cls, parties: Parties, *, on_spans: OnSpans) -> Self:
        """Agree on how weights are packed."""
        layout = await parties.layout()
        calls = {name: rank.open_ipc.remote() for name, rank in parties.ranks.items()}
        calls |= {name: engine.join_transfer.remote(PACKED) for name, engine in parties.engines.items()}
        await parties.of_all(calls, "preparing the transfer on shared GPUs")
        return cls(parties, layout, on_spans=on_spans)

    async def send(self, version: PolicyVersion) -> Publication:
        """Have every rank copy its weights aside on its GPU; the trainer is free afterwards."""
        calls = {name: rank.stage_weights.remote() for name, rank in self._parties.ranks.items()}
        what = f"copying the weights of version {version} aside"
        staged: Mapping[str, StagedWeights] = await self._parties.of_ranks(calls, what)
        checksums = {name: weights.checksum for name, weights in staged.items()}
        if len(set(checksums.values())) != 1:
            raise RuntimeError(f"trainer ranks hold different weights of version {version}: checksums {checksums}")
        self._handles = {gpu: handle for weights in staged.values() for gpu, handle in weights.handles.items()}
        checksum = next(iter(checksums.values()))
        return Publication(version=version, bytes=self._layout.bytes, checksum=checksum)

    async def deliver(self, publication: Publication) -> None:
        """Have every engine load the copy on its GPU, and check every acknowledgement."""
        info = self._layout.update_info(ipc_handles=self._handles, tensor_sizes=list(self._layout.sizes))
        engines = self._parties.engines
        calls = {name: engine.receive_weights.remote(publication.version, info) for name, engine in engines.items()}
        what = f"loading the weights of version {publication.version}"
        acks: Mapping[str, WeightAck] = await self._parties.of_all(calls, what)
        confirm(publication, acks)
        self._on_spans(tuple(span for ack in acks.values() for span in ack.spans))
