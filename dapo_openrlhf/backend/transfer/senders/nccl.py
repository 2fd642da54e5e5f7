"""The trainer's end of weight transfer between GPUs (runs in trainer ranks, CUDA only).

Both senders feed vLLM's own packed producers: tensors are packed into few large buffers, whatever their number. What
vLLM asks of the other end is in ``cuda.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch

from dapo_openrlhf.backend.messages import PACKED, StagedWeights
from dapo_openrlhf.backend.transfer.checksum import Checksum

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor


class NcclSender:
    """Rank 0's end of a group of itself and all engines' workers."""

    def __init__(self, *, address: str, port: int, world_size: int) -> None:
        """Blocks until every worker has joined."""
        import vllm.distributed.device_communicators.pynccl  # noqa: F401  it replaces torch.cuda.set_stream
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        # Otherwise vLLM would give this thread a stream of its own, which DeepSpeed does not know of.
        torch.cuda.set_stream(torch.cuda.current_stream())
        self._group = trainer_init({"master_address": address, "master_port": port, "world_size": world_size})

    def send(self, parameters: Iterable[tuple[str, Tensor]]) -> int:
        """Broadcast all tensors; returns their checksum. Blocks until every worker has received them."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        checksum = Checksum()
        torch.cuda.synchronize()  # parameters were written on the current stream; the producer has streams of its own
        packed_nccl_broadcast_producer(
            iterator=_counted(parameters, checksum),
            group=self._group,
            src=0,
            post_iter_func=itemgetter(1),
            buffer_size_bytes=PACKED["packed_buffer_size_bytes"],
            num_buffers=PACKED["packed_num_buffers"],
        )
        torch.cuda.synchronize()
        return checksum.value()


class IpcSender:
    """A rank's weights, copied aside for the engine on the same GPU.

    The copy costs a millisecond per gigabyte and as much memory as the parameters, and lets the trainer go on at once:
    the engine reads the copy, which stays as it is until the next publication.
    """

    def __init__(self) -> None:
        self._gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        self._staged: Generator[Any] | None = None

    def stage(self, parameters: Iterable[tuple[str, Tensor]], *, size: int) -> StagedWeights:
        """Copy all tensors, ``size`` bytes; every engine must be done with the previous copy."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

        if self._staged is not None:
            self._staged.close()
            torch.cuda.ipc_collect()
        checksum = Checksum()
        self._staged = packed_ipc_producer(
            iterator=_counted(parameters, checksum),
            gpu_uuid=self._gpu,
            post_iter_func=itemgetter(1),
            buffer_size_bytes=size,
        )
        # The buffer holds everything, so there is one chunk. The producer keeps the buffer until it is closed.
        chunk = next(self._staged)
        return StagedWeights(checksum=checksum.value(), handles=chunk.ipc_handle)


def _counted(parameters: Iterable[tuple[str, Tensor]], checksum: Checksum) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in parameters:
        checksum.add(name, tensor)
        yield name, tensor
