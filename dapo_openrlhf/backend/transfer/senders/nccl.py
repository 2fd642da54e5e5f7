"""The trainer's end of the weight sync by NCCL (runs on trainer rank 0, CUDA only).

It uses vLLM's own packed producer, which packs any number of tensors into a few large buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch

from dapo_openrlhf.backend.messages import PACKED
from dapo_openrlhf.backend.transfer.checksum import Checksum, counted

if TYPE_CHECKING:
    from torch import Tensor


class NcclSender:
    """Rank 0's end of the group that it forms with all engines' workers."""

    _group: Any

    def __init__(self, *, address: str, port: int, world_size: int) -> None:
        """Join the group. Blocks until every worker has joined."""
        import vllm.distributed.device_communicators.pynccl  # noqa: F401  it replaces torch.cuda.set_stream
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        # Otherwise vLLM would give this thread a stream that DeepSpeed does not know of.
        torch.cuda.set_stream(torch.cuda.current_stream())
        self._group = trainer_init({"master_address": address, "master_port": port, "world_size": world_size})

    def send(self, parameters: Iterable[tuple[str, Tensor]]) -> int:
        """Broadcast all tensors; returns their checksum. Blocks until every worker has received them."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        checksum = Checksum()
        torch.cuda.synchronize()  # parameters were written on the current stream; the producer has streams of its own
        packed_nccl_broadcast_producer(
            iterator=counted(parameters, checksum),
            group=self._group,
            src=0,
            post_iter_func=itemgetter(1),
            buffer_size_bytes=PACKED["packed_buffer_size_bytes"],
            num_buffers=PACKED["packed_num_buffers"],
        )
        torch.cuda.synchronize()
        return checksum.value()
