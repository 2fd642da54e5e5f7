"""Weight sync by NCCL, seen from the controller: one broadcast from trainer rank 0 to the workers of all engines."""

from __future__ import annotations

from typing import Any, Self

from dapo_openrlhf.backend.messages import PACKED, WeightAck, WeightLayout
from dapo_openrlhf.backend.run.publishers.parties import FIRST, Parties, confirm
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.types import PolicyVersion


class NcclPublisher:
    """A ``WeightPublisher`` between GPUs. Its group is formed once, so no engine can be replaced."""

    def __init__(self, parties: Parties, layout: WeightLayout, *, on_spans: OnSpans) -> None:
        """The group must have been formed; see :meth:`open`."""
        self._parties = parties
        self._layout = layout
        self._on_spans = on_spans
        self._acks: dict[str, WeightAck] = {}

    @classmethod
    async def open(cls, parties: Parties, *, workers_per_engine: int, on_spans: OnSpans) -> Self:
        """Form the group: trainer rank 0 is its first member, and the engines' workers follow in order.

        ``workers_per_engine`` is the engines' tensor-parallel size.
        """
        address, port = await parties.of_first(parties.first.transfer_address.remote(), "finding a free port")
        layout = await parties.layout()
        size = 1 + workers_per_engine * len(parties.engines)
        calls = {FIRST: cls._meet(parties.first).remote(address, port, size)}
        for index, (name, engine) in enumerate(parties.engines.items()):
            where = {"master_address": address, "master_port": port, "world_size": size}
            calls[name] = engine.join_transfer.remote(
                {**where, "rank_offset": 1 + workers_per_engine * index, **PACKED}
            )
        await parties.of_all(calls, f"forming the transfer group at {address}:{port}")
        return cls(parties, layout, on_spans=on_spans)

    @staticmethod
    def _meet(rank: Any) -> Any:
        """The method by which trainer rank 0 becomes the group's first member."""
        return rank.open_nccl

    async def send(self, version: PolicyVersion) -> Publication:
        """Broadcast the weights. Both sides take part, so all are called at once."""
        info, parties = self._layout.update_info(), self._parties
        calls = {name: engine.receive_weights.remote(version, info) for name, engine in parties.engines.items()}
        calls |= {name: rank.broadcast_weights.remote() for name, rank in parties.ranks.items()}
        results = await parties.of_all(calls, f"broadcasting the weights of version {version}")
        self._acks = {name: results[name] for name in parties.engines}
        return Publication(version=version, bytes=self._layout.bytes, checksum=results[FIRST])

    async def deliver(self, publication: Publication) -> None:
        """Check the engines' acknowledgements."""
        confirm(publication, self._acks)
        self._on_spans(tuple(span for ack in self._acks.values() for span in ack.spans))
