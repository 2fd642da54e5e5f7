"""The engines' ends of the weight sync, a file per transport (runs in vLLM's workers).

vLLM's own weight-transfer engines do the work where there is one. What is added is a look at whether the model took all of
a publication (:mod:`delivery`) and, between GPUs, a checksum of what arrived (:mod:`checked`). The files import vLLM; this
one says where they are to whom does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """What vLLM is told of a receiver."""

    backend: str
    """Its name among vLLM's weight-transfer engines."""
    worker_extension: str | None = None
    """What to mix into vLLM's workers; where it lies is imported by them, also by those that are processes of their own."""


RECEIVERS: Mapping[str, Receiver] = {
    "nccl": Receiver(backend="checked_nccl", worker_extension=f"{__name__}.nccl.NcclWorker"),
    "ipc": Receiver(backend="checked_ipc", worker_extension=f"{__name__}.ipc.IpcWorker"),
    "object_store": Receiver(backend="object_store"),  # imported by the engine's actor, in which its worker lives
}
"""By transport."""
