"""The trainer's end of the weight sync on shared GPUs (runs in trainer ranks, CUDA only).

It uses vLLM's own packed producer, which packs any number of tensors into a few large buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import torch

from dapo_openrlhf.backend.messages import StagedWeights
from dapo_openrlhf.backend.transfer.checksum import Checksum, counted

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor


class IpcSender:
    """Copies a rank's weights aside for the engine on the same GPU.

    The copy costs a millisecond per gigabyte and as much memory as the parameters, and lets the trainer continue at
    once: the engine reads the copy, which stays unchanged until the next publication.
    """

    def __init__(self) -> None:
        self._gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        self._staged: Generator[Any] | None = None

    def stage(self, parameters: Iterable[tuple[str, Tensor]], *, size: int) -> StagedWeights:
        """Copy all tensors, ``size`` bytes in total; every engine must be done with the previous copy."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

        if self._staged is not None:
            self._staged.close()
            torch.cuda.ipc_collect()
        checksum = Checksum()
        chunks = packed_ipc_producer(
            iterator=counted(parameters, checksum),
            gpu_uuid=self._gpu,
            post_iter_func=itemgetter(1),
            buffer_size_bytes=size,
        )
        self._staged = cast("Generator[Any]", chunks)  # vLLM's annotation is less specific
        # The buffer holds everything, so there is one chunk. The producer keeps the buffer until it is closed.
        chunk = next(self._staged)
        return StagedWeights(checksum=checksum.value(), handles=chunk.ipc_handle)
