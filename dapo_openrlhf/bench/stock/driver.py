"""Runs ``openrlhf.cli.train_ppo_ray``, unmodified: ``python -m dapo_openrlhf.bench.stock.driver ARGS``.

``arm.py`` runs it in a process of its own. It starts a local Ray, which ends with it, on a CPU with simulated GPUs.
"""

from __future__ import annotations

import argparse
import os
import runpy
from typing import Any

import ray

from dapo_openrlhf.bench.stock import flushing, on_cpu

PLACES = 6
"""Number of CPUs that Ray counts beside one for each simulated GPU, enough for its placement never to wait."""
OBJECT_STORE_BYTES = 512 << 20


def main() -> None:
    """Run stock OpenRLHF's command line with ``sys.argv``."""
    simulated = int(os.environ.get(on_cpu.SIMULATED_GPUS, 0))
    if simulated:
        _start_ray_on_cpu(simulated)
    else:
        _start_ray()
    try:
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
    finally:
        ray.shutdown()


def _start_ray_on_cpu(gpus: int) -> None:
    on_cpu.install()
    _accept_float32()
    ray.init(
        address="local",
        num_cpus=PLACES + gpus,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"worker_process_setup_hook": "dapo_openrlhf.bench.stock.on_cpu.install"},
    )


def _start_ray() -> None:
    """As OpenRLHF does it, with the hook."""
    flushing.install()
    variables = {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
    ray.init(
        address="local",
        include_dashboard=False,
        runtime_env={
            "env_vars": {name: os.environ.get(name, value) for name, value in variables.items()},
            "worker_process_setup_hook": "dapo_openrlhf.bench.stock.flushing.install",
        },
    )


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
