"""Process settings that differ between a CPU machine and a CUDA machine."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from dapo_openrlhf.backend.passed_on import passed_on
from dapo_openrlhf.config.choices import DeviceKind

DEVICE_NODES, DRIVER_GPUS = Path("/dev"), Path("/proc/driver/nvidia/gpus")
KV_CACHE_BYTES_ON_CPU = 256 << 20
BLOCK_SIZE_ON_CPU = 32
"""Tokens per KV-cache block. vLLM's CPU attention processes whole blocks; its default of 128 costs a fifth of the
throughput for responses of a few hundred tokens (4,030 instead of 4,830 tokens per second of processor time)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What trainer and engine processes need to know about the machine they run on."""

    kind: DeviceKind
    threads: int
    """Number of CPU threads of each trainer and engine process."""

    @classmethod
    def of(cls, kind: DeviceKind, *, processes: int) -> Device:
        """Share the machine's cores among ``processes`` model-holding processes."""
        match kind:
            case "cpu":
                return cls(kind=kind, threads=max(1, (os.cpu_count() or 1) // processes))
            case "cuda":
                return cls(kind=kind, threads=1)
            case _:
                assert_never(kind)

    @property
    def distributed_backend(self) -> str:
        """torch.distributed backend of the trainer ranks."""
        match self.kind:
            case "cpu":
                return "gloo"
            case "cuda":
                return "nccl"
            case _:
                assert_never(self.kind)

    def environment(self) -> Mapping[str, str]:
        """Environment variables that must be set before torch or vLLM are imported in an actor.

        The settings of this process for the libraries concerned are among them, see :mod:`.passed_on`.
        """
        common = passed_on(os.environ) | {
            "DAPO_OPENRLHF_ACTOR": "1",  # see openrlhf_bases
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core runs in its actor's own process
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            "VLLM_NO_USAGE_STATS": "1",
            "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
            "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DS_ACCELERATOR": self.kind,
        }
        match self.kind:
            case "cuda":
                flashinfer = importlib.util.find_spec("flashinfer") is not None  # vLLM assumes that it is installed
                return common if flashinfer else common | {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
            case "cpu":
                return common | {
                    "OMP_NUM_THREADS": str(self.threads),
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" would bind every engine to the same cores
                    "TORCHDYNAMO_DISABLE": "1",  # the sampler's log-probs would compile for seconds at the first token
                    "CUDA_VISIBLE_DEVICES": "",
                }
            case _:
                assert_never(self.kind)

    def runtime_env(self) -> dict[str, Any]:
        """The Ray runtime environment of an actor. Ray passes the interpreter's path to a shell without quoting it."""
        quoted = shlex.quote(sys.executable)
        interpreter = {} if quoted == sys.executable else {"py_executable": quoted}
        return {"env_vars": dict(self.environment()), **interpreter}

    def engine_settings(self, *, kv_cache_memory_bytes: int | None, gpu_memory_utilization: float) -> dict[str, Any]:
        """vLLM engine arguments that depend on the machine."""
        match self.kind:
            case "cpu":
                return {
                    "kv_cache_memory_bytes": kv_cache_memory_bytes or KV_CACHE_BYTES_ON_CPU,
                    "block_size": BLOCK_SIZE_ON_CPU,
                    "enforce_eager": True,
                }
            case "cuda" if kv_cache_memory_bytes is not None:
                return {"kv_cache_memory_bytes": kv_cache_memory_bytes}
            case "cuda":
                return {"gpu_memory_utilization": gpu_memory_utilization}
            case _:
                assert_never(self.kind)

    def count(self) -> int:
        """Number of devices of this kind on this machine: GPUs or CPU cores."""
        match self.kind:
            case "cpu":
                return os.cpu_count() or 1
            case "cuda":
                return _visible_gpus()
            case _:
                assert_never(self.kind)


def _visible_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    # A container has a device node for each GPU it was given, while /proc may list all of the host's GPUs or none. On a
    # host the nodes may not exist before the first use.
    nodes = len(list(DEVICE_NODES.glob("nvidia[0-9]*")))
    return nodes or (len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0)


def stand_in_for_cuda() -> None:
    """Make OpenRLHF's unguarded ``torch.cuda`` calls harmless in a trainer process without CUDA.

    OpenRLHF calls ``synchronize`` after every barrier and ``set_device`` before every set-up, whatever the backend.
    """
    import torch

    if torch.cuda.is_available():
        return
    cuda: Any = torch.cuda  # the stand-ins' types differ on purpose
    cuda.synchronize = lambda device=None: None
    cuda.set_device = lambda device: None
    cuda.current_device = lambda: torch.device("cpu")
    cuda.empty_cache = lambda: None
