"""What vLLM's workers can do in addition: take weights (imported in vLLM's workers only).

An engine calls these methods by vLLM's ``collective_rpc``: :meth:`WeightsWorker.begin_weights`, then one way of taking the
buckets, then :meth:`WeightsWorker.end_weights`. Nothing else runs in a worker meanwhile. Errors that the engine tells apart
are returned, in a tuple: what a worker in a process of its own raises loses its type, and so does an error by itself.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from vllm.config import set_current_vllm_config

from dapo_openrlhf.backend.messages import IncompleteWeights, Meeting, TransferAborted, WeightLayout
from dapo_openrlhf.backend.transfer.group import Group
from dapo_openrlhf.backend.transfer.receivers.loading import Loading
from dapo_openrlhf.backend.transfer.shared_buffers import Handle, HostMemory

Errors: TypeAlias = tuple[Exception, ...]
"""Of a call; none if all is well."""


class WeightsWorker:
    """A mixin for vLLM's worker. vLLM refuses names that its worker has already."""

    vllm_config: Any
    device: torch.device
    rank: int
    model_runner: Any
    _weights_group: Group | None = None
    _weights_loading: Loading
    _weights_buffer: Tensor

    def join_weights(self, meeting: Meeting, first: int, size: int) -> Errors:
        """Join a transfer group, in place of any other; ``first`` is the member's number of this engine's worker 0."""
        if self._weights_group is not None:
            self._weights_group.leave("another group is formed")
            self._weights_group = None
        try:
            self._weights_group = Group(meeting, rank=first + self.rank, size=size, device=self.device)
        except TransferAborted as error:
            return (error,)
        return ()

    def begin_weights(self, layout: WeightLayout) -> None:
        """Begin a publication."""
        with set_current_vllm_config(self.vllm_config):
            self._weights_loading = Loading(self.model_runner.get_model(), self.vllm_config.model_config, layout)

    def receive_weights(self) -> Errors:
        """Take all buckets from the transfer group."""
        assert self._weights_group is not None
        with set_current_vllm_config(self.vllm_config):
            try:
                for bucket in self._weights_group.receive(self._weights_loading.sizes):
                    self._weights_loading.take(bucket)
            except TransferAborted as error:
                return (error,)
        return ()

    def take_bucket(self, bucket: Tensor) -> None:
        """Take the next bucket, in the memory of this process."""
        with set_current_vllm_config(self.vllm_config):
            self._weights_loading.take(bucket)

    def map_weights(self, handle: Handle) -> None:
        """Map the actor's buffer, for :meth:`copy_bucket`."""
        self._weights_buffer = HostMemory().map(handle)

    def copy_bucket(self, size: int) -> None:
        """Take the next bucket of ``size`` bytes out of the actor's buffer."""
        self.take_bucket(self._weights_buffer[:size].clone())

    def end_weights(self) -> int | Errors:
        """End a publication: the checksum of what was loaded."""
        with set_current_vllm_config(self.vllm_config):
            try:
                return self._weights_loading.finish()
            except IncompleteWeights as error:
                return (error,)
            finally:
                del self._weights_loading
