"""A process group on CPUs in place of NCCL's on GPUs (runs in trainer rank 0 and in vLLM's workers).

With it, the code that transfers weights by NCCL runs on a machine without a GPU; everything but the communicator is the
same.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, ProcessGroupGloo

from dapo_openrlhf.backend.meeting import meeting_store

TIMEOUT = timedelta(minutes=30)
"""Timeout of joining and of each broadcast; a publication has a deadline of its own, ``async.publish_timeout``."""


class GlooGroup:
    """A communicator with the methods that vLLM's packed broadcast uses."""

    def __init__(self, *, address: str, port: int, rank: int, world_size: int) -> None:
        """Join the group. Blocks until all ``world_size`` members have joined; rank 0 listens on the port."""
        store = meeting_store(address, port, rank=rank, world_size=world_size, timeout=TIMEOUT)
        self._group: Any = ProcessGroupGloo(store, rank, world_size, TIMEOUT)
        _stand_in_for_streams()

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Send a tensor or overwrite it; returns when that is done. Raises ``RuntimeError`` if a member is gone."""
        options = BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()


class _HostStream:
    """A stream on which work is done immediately."""

    def synchronize(self) -> None:
        """Return immediately, because no work is pending."""


def _stand_in_for_streams() -> None:
    """Let vLLM's packing, which alternates between streams, run without an accelerator."""
    from vllm.distributed.weight_transfer import packed_tensor

    if torch.accelerator.is_available():
        return
    packing: Any = packed_tensor
    packing._get_streams = lambda device, count: (_HostStream(),) * count
    torch.accelerator.current_device_index = lambda: 0
