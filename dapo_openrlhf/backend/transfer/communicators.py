"""Communicators: what differs between the ways by which a group's sender reaches its receivers (torch).

Each has the same three methods; everything else about a transfer is the same for all of them. ``gloo`` therefore runs the
code of ``nccl`` on a machine without a GPU, and ``shared`` that of ``ipc``.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Protocol, assert_never

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions

from dapo_openrlhf.backend.messages import Meeting
from dapo_openrlhf.backend.transfer.shared_buffers import CudaMemory, HostMemory, SharedBuffers
from dapo_openrlhf.backend.transfer.store import Store

LOOPBACK = "127.0.0.1"
ON_ERROR = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class Work(Protocol):
    """One broadcast that is under way."""

    def is_completed(self) -> bool:
        """Whether it has ended, well or not."""
        ...

    def wait(self) -> Any:
        """Raise ``RuntimeError`` if it failed; the current stream waits for it."""
        ...


class Communicator(Protocol):
    """One member's end of a group whose member 0 is the sender."""

    def broadcast(self, tensor: Tensor) -> Work:
        """Begin to send a tensor of bytes, or to overwrite it with what is sent."""
        ...

    def abort(self) -> None:
        """Give up all broadcasts under way. Never blocks for long."""
        ...


class ProcessGroup:
    """A process group of torch's: :class:`Nccl` or :class:`Gloo`."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._from_sender = BroadcastOptions()
        self._from_sender.rootRank = 0

    def broadcast(self, tensor: Tensor) -> Work:
        """Begin to send or to receive."""
        work: Work = self._group.broadcast([tensor], self._from_sender)
        return work

    def abort(self) -> None:
        """Give up; ``ncclCommAbort`` for NCCL. Gloo's broadcasts end when a connection does, or at their timeout."""
        self._group.abort()


def communicator(meeting: Meeting, store: Store, rank: int, size: int, device: torch.device) -> Communicator:
    """Form a group of the meeting's kind; blocks until all ``size`` members are there.

    Raises ``RuntimeError`` if they are not within the meeting's limit.
    """
    match meeting.kind:
        case "gloo":
            return ProcessGroup(_gloo(meeting, store, rank, size))
        case "nccl":
            return ProcessGroup(_nccl(meeting, store, rank, size, device))
        case "ipc":
            return SharedBuffers(store, CudaMemory(device), rank=rank, size=size)
        case "shared":
            return SharedBuffers(store, HostMemory(), rank=rank, size=size)
        case _:
            assert_never(meeting.kind)


def _gloo(meeting: Meeting, store: Store, rank: int, size: int) -> Any:
    from torch.distributed import ProcessGroupGloo

    group: Any = ProcessGroupGloo
    options = group._Options()
    alone = meeting.address == LOOPBACK
    options._devices = [group.create_device(hostname=LOOPBACK) if alone else group.create_default_device()]
    options._timeout = timedelta(seconds=meeting.timeout)
    return group(store, rank, size, options)


def _nccl(meeting: Meeting, store: Store, rank: int, size: int, device: torch.device) -> Any:
    from torch.distributed import ProcessGroupNCCL  # absent from builds without CUDA

    options = ProcessGroupNCCL.Options()
    # Members poll with a deadline of their own. At the end of this one torch would end the whole process.
    options._timeout = timedelta(seconds=2 * meeting.timeout)
    options.config.blocking = 0  # so that forming a communicator can be given up too
    # By default a thread of torch's ends the process when a broadcast fails: here its members leave and go on.
    before = os.environ.get(ON_ERROR)
    os.environ[ON_ERROR] = "0"  # read while the group is made
    try:
        group = ProcessGroupNCCL(store, rank, size, options)
    finally:
        del os.environ[ON_ERROR]
        if before is not None:
            os.environ[ON_ERROR] = before
    group.eager_connect_single_device(device)
    return group
