"""Runs ``openrlhf.cli.train_ppo_ray``, unmodified: ``python -m dapo_openrlhf.bench.stock.driver ARGS``.

``arm.py`` runs it in a process of its own. It starts a Ray that is closed as that of our own runs and ends with it, on a CPU with
simulated GPUs.
"""

from __future__ import annotations

import argparse
import os
import runpy
from collections.abc import Mapping
from typing import Any

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.own_cluster import Size, own_cluster
from dapo_openrlhf.bench.stock import flushing, on_cpu

PLACES = 6
"""Number of CPUs that Ray counts beside one for each simulated GPU, enough for its placement never to wait."""
OBJECT_STORE_BYTES = 512 << 20
VARIABLES = {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
"""What OpenRLHF tells its processes on GPUs."""


def main() -> None:
    """Run stock OpenRLHF's command line with ``sys.argv``."""
    simulated = int(os.environ.get(on_cpu.SIMULATED_GPUS, 0))
    size, processes = _on_cpu(simulated) if simulated else _on_gpus()
    with own_cluster(size, say=print, options={"runtime_env": processes, "log_to_driver": True}):
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


def _on_cpu(gpus: int) -> tuple[Size, Mapping[str, object]]:
    on_cpu.install()
    _accept_float32()
    size = Size(cpus=PLACES + gpus, gpus=gpus, object_store_bytes=OBJECT_STORE_BYTES)
    return size, {"worker_process_setup_hook": "dapo_openrlhf.bench.stock.on_cpu.install"}


def _on_gpus() -> tuple[Size, Mapping[str, object]]:
    flushing.install()
    size = Size(cpus=os.cpu_count() or 1, gpus=Device(kind="cuda", threads=1).count(), object_store_bytes=None)
    return size, {
        "env_vars": {name: os.environ.get(name, value) for name, value in VARIABLES.items()},
        "worker_process_setup_hook": "dapo_openrlhf.bench.stock.flushing.install",
    }


def _accept_float32() -> None:
    """Make OpenRLHF's parser, which knows bf16 and fp16, accept fp32."""
    add_argument = argparse.ArgumentParser.add_argument

    def with_float32(self: argparse.ArgumentParser, *names: str, **settings: Any) -> argparse.Action:
        if "--ds.param_dtype" in names:
            settings["choices"] = [*settings["choices"], "fp32"]
        return add_argument(self, *names, **settings)

    parser: Any = argparse.ArgumentParser
    parser.add_argument = with_float32


if __name__ == "__main__":
    main()
