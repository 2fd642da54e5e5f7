"""The Ray cluster a run lives in, and whether it is large enough."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.config import Config, ConfigError

PROCESSES_PER_CORE = 2
JOIN_SECONDS = 30.0
OBJECT_STORE_BYTES_ON_CPU = 512 << 20


def check_devices(config: Config, device: Device, available: float, where: str) -> None:
    """Refuse a run that asks for more devices than exist. ``available``: GPUs, or CPU cores."""
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


def check_answer(address: str) -> None:
    """Refuse ``host:port`` where nothing listens: Ray would try again for minutes. Other forms are Ray's to resolve."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=JOIN_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS: no Ray cluster answers at {address} within {JOIN_SECONDS:g} s ({error}); correct it, start the "
            "cluster, or unset RAY_ADDRESS to use this machine"
        ) from error


@contextmanager
def ray_cluster(config: Config, device: Device) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names (a submitted job has it set), or start one of our own and stop it.

    Raises ``ConfigError`` when nothing answers there, or the joined cluster is too small.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        check_answer(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        resource = "CPU" if device.kind == "cpu" else "GPU"
        check_devices(config, device, ray.cluster_resources().get(resource, 0.0), "the Ray cluster")
    else:
        _start_local(config, device)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(config: Config, device: Device) -> None:
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
        _temp_dir=str(Path(tempfile.gettempdir()) / "ray"),
    )
