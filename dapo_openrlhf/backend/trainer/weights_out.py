"""Sends a rank's weights to the engines (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.backend.messages import StagedWeights, WeightLayout, WeightManifest
from dapo_openrlhf.backend.trainer.finite import refuse_not_finite
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.backend.transfer.senders.gloo import GlooSender
from dapo_openrlhf.backend.transfer.senders.ipc import IpcSender
from dapo_openrlhf.backend.transfer.senders.nccl import NcclSender
from dapo_openrlhf.backend.transfer.senders.object_store import ObjectStoreSender

NOT_PUBLISHED = "these weights are not published"


class WeightsOut:
    """Sends the policy's whole tensors by any of the transports. Refuses weights that are not finite."""

    def __init__(self, models: Sequence[ShardedModel], peers: Peers) -> None:
        """``models``: the policy, which is published, and any other model that must be finite for that."""
        self._models = models
        self._peers = peers
        self._whole = models[0].whole()
        self._object_store: ObjectStoreSender | None = None
        self._nccl: NcclSender | None = None
        self._ipc: IpcSender | None = None

    @property
    def layout(self) -> WeightLayout:
        """The tensors that a publication consists of, in the form that they have in the model's checkpoint."""
        return self._whole.layout

    def export(self) -> tuple[WeightManifest | None, NDArray[np.uint8] | None]:
        """All tensors in one flat buffer of bytes. Every rank must call it; only rank 0 returns them."""
        self._refuse_not_finite()
        tensors = self._whole.tensors()
        if self._peers.rank > 0:
            for _ in tensors:  # every rank must take part in gathering
                pass
            return None, None
        if self._object_store is None:
            self._object_store = ObjectStoreSender(self.layout)
        return self._object_store.pack(tensors)

    def open_nccl(self, address: str, port: int, world_size: int) -> None:
        """Form the transfer group with the engines' workers, on rank 0. Blocks until all have joined."""
        self._nccl = NcclSender(address=address, port=port, world_size=world_size)

    def open_gloo(self, address: str, port: int, world_size: int) -> None:
        """The same as :meth:`open_nccl`, on a CPU."""
        self._nccl = GlooSender(address=address, port=port, world_size=world_size)

    def open_ipc(self) -> None:
        """Prepare to share the weights with the engine on this rank's GPU."""
        self._ipc = IpcSender()

    def broadcast(self) -> int | None:
        """Send all tensors to the engines. Every rank must call it; rank 0 returns their checksum."""
        self._refuse_not_finite()
        tensors = self._whole.tensors()
        if self._peers.rank == 0:
            assert self._nccl is not None
            return self._nccl.send(tensors)
        for _ in tensors:  # every rank must take part in gathering
            pass
        return None

    def stage(self) -> StagedWeights:
        """Copy all tensors aside for the engine on this rank's GPU. Every rank must call it."""
        assert self._ipc is not None
        self._refuse_not_finite()
        return self._ipc.stage(self._whole.tensors(), size=self.layout.bytes)

    def _refuse_not_finite(self) -> None:
        refuse_not_finite(NOT_PUBLISHED, self._models, self._peers)
