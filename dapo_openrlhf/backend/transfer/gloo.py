"""A group of processes on CPUs where NCCL's broadcast expects one on GPUs (runs in trainer rank 0 and in vLLM's workers).

With it the code that carries weights by NCCL runs on a machine without a GPU: everything but the communicator is the same.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # TCPStore, which torch imports without saying so
    BroadcastOptions,
    ProcessGroupGloo,
    TCPStore,
)

TIMEOUT = timedelta(minutes=30)
"""Of joining and of each broadcast; a publication has a deadline of its own, ``async.publish_timeout``."""


class GlooGroup:
    """What vLLM's packed broadcast asks of a communicator."""

    def __init__(self, *, address: str, port: int, rank: int, world_size: int) -> None:
        """Blocks until all ``world_size`` members have joined; rank 0 listens on the port."""
        store = TCPStore(address, port, world_size, is_master=rank == 0, timeout=TIMEOUT)
        self._group: Any = ProcessGroupGloo(store, rank, world_size, TIMEOUT)
        _stand_in_for_streams()

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Send, or overwrite a tensor; returns when that is done. Raises ``RuntimeError`` when a member is gone."""
        options = BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()


class _HostStream:
    """Everything is done at once."""

    def synchronize(self) -> None:
        """Nothing is under way."""


def _stand_in_for_streams() -> None:
    """Let vLLM's packing go on without an accelerator, whose streams it alternates between."""
    from vllm.distributed.weight_transfer import packed_tensor

    if torch.accelerator.is_available():
        return
    packing: Any = packed_tensor
    packing._get_streams = lambda device, count: (_HostStream(),) * count
    torch.accelerator.current_device_index = lambda: 0
