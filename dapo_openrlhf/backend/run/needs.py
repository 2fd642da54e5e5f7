"""What a run needs of a machine or a cluster: devices, and shared memory for objects (without Ray)."""

from __future__ import annotations

from pathlib import Path

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config

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


def object_store_bytes(config: Config, memory: int) -> int:
    """What a run's groups and published weights take at most, within bounds. ``memory``: the machine's, in bytes."""
    groups = 2 * (config.async_.max_staleness + 1) * config.rollout.batch_size  # in flight or ready, and being trained
    tokens = groups * config.rollout.n_samples_per_prompt * config.data.max_len
    files = Path(config.actor.model_name_or_path).glob("*.safetensors")
    weights = 2 * sum(file.stat().st_size for file in files)  # trained in float32, perhaps kept in bfloat16
    wanted = tokens * BYTES_PER_TOKEN + MODELS_AT_ONCE * weights
    return max(LEAST_OBJECT_STORE, min(wanted, int(MOST_OF_MEMORY * memory)))
