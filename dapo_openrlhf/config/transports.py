"""Transports of the weight sync: what ``vllm.sync_backend`` may be, and what each can do.

A transport is a row here, a sender and a receiver of its name in ``backend/transfer/``, and a publisher of its name in
``backend/run/publishers/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

TransportName: TypeAlias = Literal["nccl", "ipc", "object_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """A row of :data:`TRANSPORTS`."""

    way: str
    """How weights travel, for the reference."""
    needs_gpus: bool
    shared_gpu: Literal["needed", "refused", "allowed"]
    """Whether engine and trainer may live on the same GPU (``train.colocate_all``)."""
    tensor_parallel: bool
    """Whether an engine may be several workers."""
    revives: bool
    """Whether an engine that is lost is replaced; otherwise it ends the run."""

    def fits(self, *, gpus: bool, shared: bool) -> bool:
        """Whether a placement allows it."""
        return (gpus or not self.needs_gpus) and self.shared_gpu != ("refused" if shared else "needed")


TRANSPORTS: Mapping[TransportName, Transport] = {
    "nccl": Transport(
        way="one packed NCCL broadcast from trainer rank 0 to every worker of every engine",
        needs_gpus=True,
        shared_gpu="refused",
        tensor_parallel=True,
        revives=False,
    ),
    "ipc": Transport(
        way="through a copy in GPU memory that engine and trainer rank both map (CUDA IPC)",
        needs_gpus=True,
        shared_gpu="needed",
        tensor_parallel=False,
        revives=False,
    ),
    "object_store": Transport(
        way="packed once into Ray's object store, in host memory, from which every engine loads",
        needs_gpus=False,
        shared_gpu="allowed",
        tensor_parallel=False,
        revives=True,
    ),
}
"""``auto`` takes the first that fits."""


def automatic(*, gpus: bool, shared: bool) -> TransportName:
    """What ``auto`` is in a placement."""
    return next(name for name, transport in TRANSPORTS.items() if transport.fits(gpus=gpus, shared=shared))


def refusal(name: TransportName, *, gpus: bool, shared: bool, tensor_parallel_size: int) -> str | None:
    """Why weights cannot travel so, with what to use instead; None if they can."""
    transport, instead = TRANSPORTS[name], f"use auto or {automatic(gpus=gpus, shared=shared)}"
    if transport.needs_gpus and not gpus:
        return f"{name} needs GPUs; {instead} with device: cpu"
    if shared and transport.shared_gpu == "refused":
        return f"{name} refuses two processes on one GPU, which train.colocate_all asks for; {instead}"
    if not shared and transport.shared_gpu == "needed":
        return f"{name} needs engine and trainer on the same GPU (train.colocate_all); {instead}"
    # An engine that needs a shared GPU has just that one, whatever carries its weights.
    if tensor_parallel_size > 1 and not transport.tensor_parallel and transport.shared_gpu != "needed":
        instead = automatic(gpus=True, shared=False)
        return (
            f"{name} cannot feed an engine of vllm.tensor_parallel_size {tensor_parallel_size}; use auto or {instead}"
        )
    return None
