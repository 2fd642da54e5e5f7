"""A communicator through two buffers that sender and receivers map: GPU memory by CUDA IPC, or host memory.

The sender writes bucket n into buffer n % 2 once every receiver has copied bucket n - 2 out of it. Both ends count in the
group's store. The sender's work with a bucket is complete once it is written, so it may go on while it is read.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, uint8

from dapo_openrlhf.backend.transfer import buckets
from dapo_openrlhf.backend.transfer.store import Store

BUFFERS = 2
HANDLES, READY, CONSUMED = "buffers", "ready", "consumed"
Handle: TypeAlias = list[Any]
"""What another process needs to map memory: strings and numbers, as JSON has them."""


class Memory(Protocol):
    """Memory that other processes of this machine can map."""

    def allocate(self, size: int) -> tuple[Tensor, Handle]:
        """A tensor of bytes, and what another process needs to map it."""
        ...

    def map(self, handle: Handle) -> Tensor:
        """The tensor that another process has allocated."""
        ...

    def settle(self) -> None:
        """Wait until copies that have been queued are done."""
        ...


class CudaMemory:
    """Memory of one GPU (CUDA IPC)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size: int) -> tuple[Tensor, Handle]:
        """Allocate on the GPU; others may use the memory as long as this tensor lives."""
        tensor = torch.empty(size, dtype=uint8, device=self._device)
        _, *shared = tensor.untyped_storage()._share_cuda_()
        return tensor, [self._gpu(), *(part.hex() if isinstance(part, bytes) else part for part in shared)]

    def map(self, handle: Handle) -> Tensor:
        """Map it, under this process's own number of the GPU. Raises ``RuntimeError`` on another GPU."""
        gpu, memory, size, offset, counter, counter_offset, event, synchronize = handle
        if gpu != self._gpu():
            raise RuntimeError(f"the trainer rank's buffers are on GPU {gpu}, and this engine is on GPU {self._gpu()}")
        torch.cuda.init()
        storage = torch.UntypedStorage._new_shared_cuda(
            self._index(),
            bytes.fromhex(memory),
            size,
            offset,
            bytes.fromhex(counter),
            counter_offset,
            bytes.fromhex(event),
            synchronize,
        )
        return torch.empty(0, dtype=uint8, device=self._device).set_(storage)

    def _gpu(self) -> str:
        return str(torch.cuda.get_device_properties(self._index()).uuid)

    def _index(self) -> int:
        return torch.cuda.current_device() if self._device.index is None else self._device.index

    def settle(self) -> None:
        """Wait for this thread's stream."""
        torch.cuda.current_stream(self._device).synchronize()


class HostMemory:
    """Host memory without a name, which is gone once no process maps it."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def allocate(self, size: int) -> tuple[Tensor, Handle]:
        """Allocate pages that others may map as long as this object lives."""
        descriptor = os.memfd_create("weights")
        self._descriptors.append(descriptor)
        os.ftruncate(descriptor, size)
        return _mapped(descriptor, size), [f"/proc/{os.getpid()}/fd/{descriptor}", size]

    def map(self, handle: Handle) -> Tensor:
        """Map pages that another process of the same user has allocated."""
        path, size = handle
        descriptor = os.open(path, os.O_RDWR)
        try:
            return _mapped(descriptor, size)
        finally:
            os.close(descriptor)

    def settle(self) -> None:
        """Return at once: copies in host memory are done when they return."""


def _mapped(descriptor: int, size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=uint8)


class SharedBuffers:
    """One member's end. A ``Communicator``."""

    def __init__(self, store: Store, memory: Memory, *, rank: int, size: int) -> None:
        """Allocate the buffers as member 0, or wait for them and map them."""
        self._store = store
        self._memory = memory
        self._rank = rank
        self._receivers = range(1, size)
        self._number = 0
        self._aborted = False
        if rank == 0:
            allocated = [memory.allocate(buckets.BUCKET_BYTES) for _ in range(BUFFERS)]
            self._buffers = [tensor for tensor, _ in allocated]
            store.set(HANDLES, json.dumps([handle for _, handle in allocated]))
        else:
            self._buffers = [memory.map(handle) for handle in json.loads(store.get(HANDLES))]

    def broadcast(self, tensor: Tensor) -> _Turn:
        """Begin to write or to read the next bucket."""
        turn = _Turn(self, tensor, self._number)
        self._number += 1
        return turn

    def abort(self) -> None:
        """Let every turn end at once, with nothing done."""
        self._aborted = True

    def turn(self, number: int, tensor: Tensor) -> bool:
        """Copy bucket ``number`` if it is its turn; returns whether there is nothing left to do."""
        if self._aborted:
            return True
        store, buffer = self._store, self._buffers[number % BUFFERS][: tensor.numel()]
        if self._rank == 0:
            if any(store.add(f"{CONSUMED}/{receiver}", 0) < number - 1 for receiver in self._receivers):
                return False
            buffer.copy_(tensor)
            self._memory.settle()
            store.add(READY, 1)
        else:
            if store.add(READY, 0) <= number:
                return False
            tensor.copy_(buffer)
            self._memory.settle()
            store.add(f"{CONSUMED}/{self._rank}", 1)
        return True


class _Turn:
    """One bucket's copy. Turns of a member are done in order."""

    def __init__(self, buffers: SharedBuffers, tensor: Tensor, number: int) -> None:
        self._buffers = buffers
        self._tensor = tensor
        self._number = number
        self._done = False

    def is_completed(self) -> bool:
        """Copy if it is this bucket's turn."""
        self._done = self._done or self._buffers.turn(self._number, self._tensor)
        return self._done

    def wait(self) -> None:
        """Nothing is left to wait for once it is completed."""
