"""The machines that a run is checked for: this one, those of a Ray cluster, or those that ``--gpus`` names."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

import psutil

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.node_look import Asked, Look
from dapo_openrlhf.config.choices import DeviceKind
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.plan.gpus import GPUS

SMI_SECONDS = 10.0
"""Seconds that ``nvidia-smi`` may take."""
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine, and what of it is free."""

    cpus: float = 0.0
    free_cpus: float = 0.0
    gpus: float = 0.0
    free_gpus: float = 0.0
    gpu_bytes: float | None = None
    """Memory of each GPU; None where it is not known."""
    held_bytes: float = 0.0
    """Memory that others hold of the fullest GPU."""
    memory_bytes: float | None = None
    """Memory of the machine that is available; None where it is not known."""
    address: str = ""
    """In the cluster."""
    look: Look | str | None = None
    """What a look at it found, or why none could be taken; None where none was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Where a run is to run."""

    where: str
    """In words, for messages."""
    each: tuple[Machine, ...]
    here: bool
    """Whether it is this machine, so that its disk, memory and limits are the run's."""
    assumed: bool = False
    """Whether they were only named, and need not exist."""

    @property
    def gpu_bytes(self) -> float | None:
        """Memory of the smallest GPU; None where it is not known."""
        return min((machine.gpu_bytes for machine in self.each if machine.gpu_bytes is not None), default=None)


def named(text: str, nodes: int) -> Machines:
    """``nodes`` machines such as ``h100x8``. Raises ``ConfigError`` for GPUs that are not known."""
    match = re.fullmatch(r"([a-z0-9]+?)x(\d+)", text.strip().lower())
    if match is None or match[1] not in GPUS or not int(match[2]) or nodes < 1:
        raise ConfigError(
            f"--gpus {text} --nodes {nodes}: not GPUs of a machine; write a kind, x and their number, such as h100x8; known "
            f"are {', '.join(sorted(GPUS))}"
        )
    count, gpu = int(match[2]), GPUS[match[1]]
    machine = Machine(gpus=count, free_gpus=count, gpu_bytes=gpu.memory)
    where = f"{nodes} machine(s) with {count} {match[1].upper()} of {gpu.memory / 1e9:.0f} GB"
    return Machines(where=where, each=(machine,) * nodes, here=False, assumed=True)


def this_machine(kind: DeviceKind) -> Machines:
    """This machine as it is now."""
    cpus, memory = float(os.cpu_count() or 1), float(psutil.virtual_memory().available)
    machine = Machine(cpus=cpus, free_cpus=cpus, memory_bytes=memory)
    if kind == "cuda":
        count = Device.of("cuda", processes=1).count()
        totals, held = gpu_memory(_smi())
        machine = Machine(
            cpus=cpus,
            free_cpus=cpus,
            gpus=count,
            free_gpus=count,
            gpu_bytes=min(totals, default=None),
            held_bytes=max(held, default=0.0),
            memory_bytes=memory,
        )
    return Machines(where="this machine", each=(machine,), here=True)


def of_cluster(address: str, asked: Asked, kind: DeviceKind) -> Machines:
    """The machines of the Ray cluster at an address, looked at. Raises ``ConfigError`` where none answers."""
    from dapo_openrlhf.backend.run.capacity import nodes_of

    nodes = nodes_of(address, asked, kind)
    here = len(nodes) == 1 and nodes[0].here
    each = tuple(
        Machine(
            cpus=node.cpus,
            free_cpus=node.free_cpus,
            gpus=node.gpus,
            free_gpus=node.free_gpus,
            gpu_bytes=_memory_of(node.accelerator),
            memory_bytes=float(psutil.virtual_memory().available) if here else None,
            address=node.address,
            look=node.look,
        )
        for node in nodes
    )
    return Machines(where=f"the Ray cluster at {address}", each=each, here=here)


def _memory_of(accelerator: str) -> float | None:
    """Memory of a kind of GPU as Ray names it, such as ``H100`` or ``A100-80G``."""
    return next((gpu.memory for name, gpu in GPUS.items() if name in accelerator.lower()), None)


def _smi() -> str:
    command = ["nvidia-smi", "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def gpu_memory(table: str) -> tuple[list[float], list[float]]:
    """Bytes in all and bytes in use of each GPU, from lines of MiB as ``nvidia-smi`` prints them."""
    rows = [line.split(",") for line in table.splitlines() if re.fullmatch(r"\s*\d+\s*,\s*\d+\s*", line)]
    return [int(row[0]) * MEBIBYTE for row in rows], [int(row[1]) * MEBIBYTE for row in rows]
