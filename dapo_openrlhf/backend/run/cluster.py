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
from dapo_openrlhf.backend.run.needs import check_devices, object_store_bytes
from dapo_openrlhf.backend.run.own_cluster import Size, own_cluster
from dapo_openrlhf.backend.run.ray_address import asked_address, resolve
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.stopping import reinstall


@contextmanager
def ray_cluster(
    config: Config, device: Device, *, say: Callable[[str], None] = print, logs: Path | None = None
) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names, in a submitted job its own, or start one of this machine's own.

    ``say`` is told what guards a joined cluster lacks; for a cluster of its own, and ``logs``, see :func:`own_cluster`.
    Raises ``ConfigError`` if nothing answers at the address or the joined cluster is too small.
    """
    address = resolve(asked_address())
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
