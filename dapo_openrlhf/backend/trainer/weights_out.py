"""Sends a rank's weights to the engines (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dapo_openrlhf.backend.messages import Meeting, StagedWeights, WeightLayout
from dapo_openrlhf.backend.trainer.finite import refuse_not_finite
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.backend.transfer.buckets import packed
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.group import Group

NOT_PUBLISHED = "these weights are not published"
HOST = torch.device("cpu")


class WeightsOut:
    """Sends the policy's whole tensors by any of the transports. Refuses weights that are not finite."""

    def __init__(self, models: Sequence[ShardedModel], peers: Peers, *, version: int) -> None:
        """``models``: the policy, which is published, and any other model that must be finite for that."""
        self.version = version
        """Number of rollout steps that the weights have been trained for."""
        self._models = models
        self._peers = peers
        self._whole = models[0].whole()
        self._group: Group | None = None

    @property
    def layout(self) -> WeightLayout:
        """The tensors that a publication consists of, in the form that they have in the model's checkpoint."""
        return self._whole.layout

    def export(self) -> Iterator[NDArray[np.uint8] | StagedWeights]:
        """Yield the buckets in host memory, one at a time, and then what they are.

        Every rank must exhaust it; only rank 0 yields anything.
        """
        self._refuse_not_finite()
        tensors = self._whole.tensors()
        if self._peers.rank > 0:
            _exhaust(tensors)
            return
        checksum = Checksum()
        for bucket in packed(self.layout, tensors, HOST):
            checksum.add(bucket)
            yield bucket.numpy()
        yield StagedWeights(version=self.version, checksum=checksum.value())

    def join(self, meeting: Meeting, size: int) -> None:
        """Form a transfer group of ``size`` members, in place of any other, as its sender.

        Blocks until all have joined; raises ``TransferAborted`` if they do not.
        """
        self.leave()
        self._group = Group(meeting, rank=0, size=size, device=self._models[0].device)

    def leave(self) -> None:
        """Leave the transfer group, if there is one."""
        if self._group is not None:
            self._group.leave("another group is formed")
            self._group = None

    def send(self) -> int | None:
        """Send all tensors to the members of this rank's group, if it has one; returns their checksum.

        Every rank must call it. Raises ``TransferAborted``.
        """
        self._refuse_not_finite()
        tensors = self._whole.tensors()
        try:
            if self._group is None:
                return None
            return self._group.send(packed(self.layout, tensors, self._models[0].device))
        finally:
            _exhaust(tensors)  # gathering is a collective, also for a rank whose transfer was given up

    def _refuse_not_finite(self) -> None:
        refuse_not_finite(NOT_PUBLISHED, self._models, self._peers)


def _exhaust(tensors: Iterator[tuple[str, Tensor]]) -> None:
    for _ in tensors:
        pass
