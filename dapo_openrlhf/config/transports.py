"""Transports of the weight sync: the values of ``vllm.sync_backend``, and what each can do.

A transport consists of a row here, and of a communicator in ``backend/transfer/communicators.py`` or, for the object store,
a publisher of its own in ``backend/run/publishers/``. By all of them an engine that is lost is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

TransportName: TypeAlias = Literal["nccl", "ipc", "object_store", "gloo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """A row of :data:`TRANSPORTS`."""

    way: str
    """How weights travel, in the words of the reference page."""
    machine: Literal["cuda", "cpu", "any"]
    """The ``device`` that the transport needs."""
    shared_gpu: Literal["needed", "refused", "allowed"]
    """Whether engine and trainer may live on the same GPU (``train.colocate_all``)."""

    def fits(self, *, device: str, shared: bool) -> bool:
        """Whether a placement allows the transport."""
        return self.machine in (device, "any") and self.shared_gpu != ("refused" if shared else "needed")


TRANSPORTS: Mapping[TransportName, Transport] = {
    "nccl": Transport(
        way="in buckets by NCCL broadcasts from trainer rank 0 to every worker of every engine",
        machine="cuda",
        shared_gpu="refused",
    ),
    "ipc": Transport(
        way="in buckets through two buffers in GPU memory that engine and trainer rank both map (CUDA IPC)",
        machine="cuda",
        shared_gpu="needed",
    ),
    "object_store": Transport(
        way="in buckets through Ray's object store, in host memory, from which every engine loads",
        machine="any",
        shared_gpu="allowed",
    ),
    "gloo": Transport(
        way="as `nccl`, by a gloo broadcast between CPUs: a rehearsal of that code on a machine without a GPU",
        machine="cpu",
        shared_gpu="allowed",
    ),
}
"""The transports by name; ``auto`` takes the first that fits."""


def automatic(*, device: str, shared: bool) -> TransportName:
    """The transport that ``auto`` stands for in a placement."""
    return next(name for name, transport in TRANSPORTS.items() if transport.fits(device=device, shared=shared))


def refusal(name: TransportName, *, device: str, shared: bool) -> str | None:
    """Why the transport cannot be used, and what to use instead; None if it can."""
    transport, instead = TRANSPORTS[name], f"use auto or {automatic(device=device, shared=shared)}"
    if transport.machine not in (device, "any"):
        needed = "GPUs" if transport.machine == "cuda" else "a CPU"
        return f"{name} needs {needed}; {instead} with device: {device}"
    if shared and transport.shared_gpu == "refused":
        return f"{name} refuses two processes on one GPU, which train.colocate_all asks for; {instead}"
    if not shared and transport.shared_gpu == "needed":
        return f"{name} needs engine and trainer on the same GPU (train.colocate_all); {instead}"
    return None
