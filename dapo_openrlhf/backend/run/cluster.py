"""The Ray cluster of a run, and whether it is large enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.ray_address import resolve
from dapo_openrlhf.backend.run.ray_folder import ray_folder
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.stopping import reinstall

PROCESSES_PER_CORE = 2
OBJECT_STORE_BYTES_ON_CPU = 512 << 20


def check_devices(config: Config, device: Device, available: float, where: str) -> None:
    """Refuse a run that asks for more devices than exist. ``available`` is the number of GPUs or of CPU cores."""
    wanted = config.devices
    trainer = f"actor.num_nodes {config.actor.num_nodes} x actor.num_gpus_per_node {config.actor.num_gpus_per_node} = {wanted}"
    asked = (
        f"vllm.num_engines {config.vllm.num_engines} x vllm.tensor_parallel_size {config.vllm.tensor_parallel_size} + "
        + trainer
    )
    if config.train.colocate_all:
        asked = f"with train.colocate_all, {trainer}"
    if device.kind == "cuda" and wanted > available:
        share = "" if config.train.colocate_all else ", or let them share GPUs with train.colocate_all"
        raise ConfigError(f"{asked} GPUs, but {where} has {available:g}; use fewer engines or trainer ranks{share}")
    if device.kind == "cpu" and wanted > PROCESSES_PER_CORE * available:
        raise ConfigError(
            f"{asked} processes, but {where} has {available:g} CPU cores and takes at most {PROCESSES_PER_CORE} "
            "processes a core; use fewer engines or trainer ranks"
        )


@contextmanager
def ray_cluster(config: Config, device: Device, *, say: Callable[[str], None] = print) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names (set in a submitted job), or start a local one and stop it later.

    ``say`` is called if Ray's files go elsewhere than to TMPDIR. Raises ``ConfigError`` if nothing answers at the
    address or the joined cluster is too small.
    """
    address = resolve(os.environ.get("RAY_ADDRESS", ""))
    try:
        if address is None:
            _start_local(config, device, ray_folder(say))
        else:
            _join(address)
            resource = "CPU" if device.kind == "cpu" else "GPU"
            check_devices(config, device, ray.cluster_resources().get(resource, 0.0), "the Ray cluster")
        reinstall()  # Ray's own handler of SIGTERM exits in the middle of running work
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError, TimeoutError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"RAY_ADDRESS: the Ray cluster at {address} cannot be joined: {reason}") from error


def _start_local(config: Config, device: Device, folder: Path) -> None:
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    model_processes = config.vllm.num_engines * config.vllm.tensor_parallel_size + config.trainer_ranks
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, model_processes),
        num_gpus=device.count() if device.kind == "cuda" else 0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES_ON_CPU if device.kind == "cpu" else None,
        _temp_dir=str(folder),
    )
