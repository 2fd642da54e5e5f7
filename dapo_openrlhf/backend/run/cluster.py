"""The Ray cluster of a run, and whether it is large enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import AuthenticationError

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.own_cluster import Size, own_cluster
from dapo_openrlhf.backend.run.ray_address import resolve
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.stopping import reinstall

PROCESSES_PER_CORE = 2
LEAST_OBJECT_STORE = 512 << 20
"""Bytes of shared memory for objects on a CPU machine, at least; on others Ray chooses."""
MOST_OF_MEMORY = 0.25
"""The share of the machine's memory that objects may take; Ray writes what goes beyond to disk, in the run's folder."""
BYTES_PER_TOKEN = 24
"""Id, log-probability, and text as a response and as part of a query."""
MODELS_AT_ONCE = 2
"""A published version and the one before, which an engine may still be reading."""


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
def ray_cluster(
    config: Config, device: Device, *, say: Callable[[str], None] = print, logs: Path | None = None
) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names (set in a submitted job), or start one of this machine's own.

    ``say`` is told what guards a joined cluster lacks; for a cluster of its own, and ``logs``, see :func:`own_cluster`.
    Raises ``ConfigError`` if nothing answers at the address or the joined cluster is too small.
    """
    address = resolve(os.environ.get("RAY_ADDRESS", ""))
    with joined(address, say) if address is not None else own_cluster(_size(config, device), say=say, logs=logs):
        if address is not None:
            resource = "CPU" if device.kind == "cpu" else "GPU"
            check_devices(config, device, ray.cluster_resources().get(resource, 0.0), "the Ray cluster")
        reinstall()  # Ray's own handler of SIGTERM exits in the middle of running work
        yield


@contextmanager
def joined(address: str, say: Callable[[str], None]) -> Iterator[None]:
    """Connect to a running cluster, and leave it as it is at the end."""
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (RuntimeError, ConnectionError, TimeoutError, ValueError, AuthenticationError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"RAY_ADDRESS: the Ray cluster at {address} cannot be joined: {reason}") from error
        for line in open_doors(address):
            say(line)
        yield
    finally:
        ray.shutdown()


def open_doors(address: str) -> Iterator[str]:
    """What is missing to keep others out of the joined cluster, in at most one line."""
    missing = []
    if not is_token_auth_enabled():
        missing.append("it asks for no token (RAY_AUTH_MODE=token)")
    reachable = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} - {"127.0.0.1", "::1"}
    if reachable:
        missing.append(f"its ports are open on every interface of {', '.join(sorted(reachable))}")
    if missing:
        yield f"whoever reaches the Ray cluster at {address} can run code in it: {'; '.join(missing)}; see docs/security.md"


def _size(config: Config, device: Device) -> Size:
    model_processes = config.vllm.num_engines * config.vllm.tensor_parallel_size + config.trainer_ranks
    return Size(
        cpus=max(os.cpu_count() or 1, model_processes),
        gpus=device.count() if device.kind == "cuda" else 0,
        object_store_bytes=object_store_bytes(config, psutil.virtual_memory().total) if device.kind == "cpu" else None,
    )


def object_store_bytes(config: Config, memory: int) -> int:
    """What a run's groups and published weights take at most, within bounds. ``memory``: the machine's, in bytes."""
    groups = 2 * (config.async_.max_staleness + 1) * config.rollout.batch_size  # in flight or ready, and being trained
    tokens = groups * config.rollout.n_samples_per_prompt * config.data.max_len
    files = Path(config.actor.model_name_or_path).glob("*.safetensors")
    weights = 2 * sum(file.stat().st_size for file in files)  # trained in float32, perhaps kept in bfloat16
    wanted = tokens * BYTES_PER_TOKEN + MODELS_AT_ONCE * weights
    return max(LEAST_OBJECT_STORE, min(wanted, int(MOST_OF_MEMORY * memory)))
