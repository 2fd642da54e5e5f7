"""The engines' end of the weight sync, with one file per transport (runs in vLLM's workers).

vLLM's own weight-transfer engines do the work where there is one. What is added is a check that the model took all of a
publication (:mod:`delivery`) and, between GPUs, a checksum of what arrived (:mod:`checked`). The files import vLLM;
this one tells code that does not import vLLM where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """The settings of vLLM that select a receiver."""

    backend: str
    """Its name among vLLM's weight-transfer engines."""
    worker_extension: str | None = None
    """Class to mix into vLLM's workers. They import its module themselves, including those in processes of their
    own."""


RECEIVERS: Mapping[str, Receiver] = {
    "nccl": Receiver(backend="checked_nccl", worker_extension=f"{__name__}.nccl.NcclWorker"),
    "ipc": Receiver(backend="checked_ipc", worker_extension=f"{__name__}.ipc.IpcWorker"),
    "gloo": Receiver(backend="checked_gloo", worker_extension=f"{__name__}.gloo.GlooWorker"),
    "object_store": Receiver(backend="object_store"),  # imported by the engine's actor, which runs its worker
}
"""The receivers by transport."""
