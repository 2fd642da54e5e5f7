"""Runs ``openrlhf.cli.train_ppo_ray``, unmodified, on a CPU: ``python -m dapo_openrlhf.bench.stock.driver ARGS``.

``arm.py`` runs it in a process of its own. It starts a Ray with simulated GPUs, closed as that of our own runs and ended with it.
"""

from __future__ import annotations

import argparse
import runpy
from typing import Any

from dapo_openrlhf.backend.run.own_cluster import Size, own_cluster
from dapo_openrlhf.bench.stock.on_cpu import install

SIMULATED_GPUS = 2
"""Number of GPUs that Ray counts: one for the engine, one for the trainer."""
PLACES = 8
"""Number of CPUs that Ray counts, enough for its placement never to wait."""
OBJECT_STORE_BYTES = 512 << 20


def main() -> None:
    """Run stock OpenRLHF's command line with ``sys.argv``."""
    install()
    _accept_float32()
    size = Size(cpus=PLACES, gpus=SIMULATED_GPUS, object_store_bytes=OBJECT_STORE_BYTES)
    setup = {"worker_process_setup_hook": "dapo_openrlhf.bench.stock.on_cpu.install"}
    with own_cluster(size, say=print, options={"runtime_env": setup, "log_to_driver": True}):
        runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


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
