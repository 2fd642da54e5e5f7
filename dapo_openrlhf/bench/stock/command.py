"""The command that starts stock OpenRLHF: its modes, its command line, its environment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dapo_openrlhf.algorithm.choices import DataType
from dapo_openrlhf.backend.device import KV_CACHE_BYTES_ON_CPU, Device
from dapo_openrlhf.bench.arm import ArmSettings
from dapo_openrlhf.bench.stock.on_cpu import PACKED_ATTENTION, SIMULATED_GPUS, VLLM_SETTINGS
from dapo_openrlhf.bench.workload.workload import Workload

StockMode: TypeAlias = Literal["sync", "async", "async-partial"]
"""Its synchronous trainer, its asynchronous one, and the latter with ``--train.partial_rollout_enable``."""

MODE_FLAGS: Mapping[StockMode, tuple[str, ...]] = {
    "sync": (),
    "async": ("--train.async_enable",),
    "async-partial": ("--train.async_enable", "--train.partial_rollout_enable"),
}
FLAGS = (
    "--algo.dynamic_filtering_enable",
    "--vllm.enable_prefix_caching",
    "--ds.packing_samples",
    "--train.dynamic_batch_enable",
)
ON_CPU = ("--vllm.enforce_eager", "--ds.attn_implementation", PACKED_ATTENTION)
"""Arguments for a machine without a GPU."""
SPARE_STEPS = 2
"""Number of steps for which additional prompts are given, since stock stops when they are used up and the pass rate
varies."""


def stock_arguments(mode: StockMode, workload: Workload, settings: ArmSettings, folder: Path) -> list[str]:
    """OpenRLHF's command line, but for what depends on the machine. ``folder`` is for the files that it writes."""
    prompts = math.ceil((settings.steps + SPARE_STEPS) * settings.batch_size / workload.pass_rate)
    if prompts > workload.prompt_count:
        raise ValueError(f"{settings.steps} steps need {prompts} prompts, the workload has {workload.prompt_count}")
    values: dict[str, object] = {
        "actor.model_name_or_path": workload.model,
        "actor.num_nodes": 1,
        "actor.num_gpus_per_node": 1,
        "actor.adam.lr": settings.learning_rate,
        "actor.adam.betas": settings.adam_betas,
        "actor.lr_scheduler": "constant_with_warmup",
        "actor.eps_clip_low_high": settings.eps_clip_low_high,
        "actor.loss_agg_mode": "token-mean",
        "algo.advantage.estimator": "group_norm",
        "algo.advantage.is_correction_level": "token",
        "algo.advantage.is_correction_mode": settings.is_correction_mode,
        "algo.advantage.is_correction_threshold": settings.is_correction_threshold,
        "algo.kl.init_coef": 0,
        "algo.dynamic_filtering_range": (0, 1),
        "ckpt.output_dir": folder / "model",
        "ckpt.path": folder / "checkpoints",
        "data.prompt_dataset": workload.prompts,
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": workload.max_len,
        "data.max_samples": prompts,
        "ds.param_dtype": settings.param_dtype,
        "ds.zero_stage": 2,
        "logger.tensorboard_dir": folder / "tensorboard",
        "rollout.batch_size": settings.batch_size,
        "rollout.n_samples_per_prompt": settings.n_samples_per_prompt,
        "rollout.max_new_tokens": workload.max_new_tokens,
        "rollout.max_tokens_per_gpu": settings.max_tokens_per_gpu,
        "rollout.temperature": 1.0,
        "rollout.top_p": 1.0,
        "train.async_queue_size": settings.async_queue_size,
        "train.batch_size": settings.train_batch_size,
        "train.max_epochs": settings.max_epochs,
        "train.max_tokens_per_gpu": settings.max_tokens_per_gpu,
        "train.num_episodes": 1,
        "train.seed": settings.seed,
        "vllm.num_engines": 1,
        "vllm.tensor_parallel_size": 1,
    }
    return [*MODE_FLAGS[mode], *FLAGS, *written(dict([workload.judge]) | values)]


def stock_environment(settings: ArmSettings, folder: Path) -> dict[str, str]:
    """The environment of its processes for the work of the presets."""
    engine = CpuEngine(
        param_dtype=settings.param_dtype,
        kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        max_num_seqs=settings.max_num_seqs,
    )
    return environment_on_cpu(engine, folder, devices=2, threads=1) | {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuEngine:
    """What OpenRLHF's engines are told on a CPU from outside."""

    param_dtype: DataType
    kv_cache_memory_bytes: int = KV_CACHE_BYTES_ON_CPU
    max_num_seqs: int = 512
    max_num_batched_tokens: int = 8192

    @property
    def arguments(self) -> dict[str, object]:
        """Of vLLM's engine."""
        return {
            "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.param_dtype],
            "worker_extension_cls": "dapo_openrlhf.bench.stock.engine.CpuWorkerWrap",
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "disable_log_stats": True,
        }


def environment_on_cpu(engine: CpuEngine, folder: Path, *, devices: int, threads: int) -> dict[str, str]:
    """The environment of its processes on a CPU: that of our own actors, and what Ray and Hugging Face need.

    ``threads`` of each process that holds a model, of which there are ``devices``.
    """
    environment = os.environ | dict(Device(kind="cpu", threads=threads).environment())
    environment.pop("CUDA_VISIBLE_DEVICES")  # Ray simulates GPUs, and refuses to when this is empty
    environment.pop("RAY_ADDRESS", None)  # a Ray of its own, wherever this runs
    return environment | {
        SIMULATED_GPUS: str(devices),
        VLLM_SETTINGS: json.dumps(engine.arguments),
        "PYTHONPATH": _python_path(),
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }


def environment_on_gpus(folder: Path) -> dict[str, str]:
    """The environment of its processes on GPUs: the user's, and a Ray of its own. ``folder`` is for the files that it writes."""
    own = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", SIMULATED_GPUS}}
    return own | {"PYTHONPATH": _python_path(), "HF_DATASETS_CACHE": str(folder / "datasets")}


def _python_path() -> str:
    """This package's folder before those of the environment."""
    packages = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))


def written(values: Mapping[str, object]) -> Iterator[str]:
    """Yield settings as command-line arguments: true ones as their name alone, false ones and None not at all."""
    for name, value in values.items():
        if value is None or value is False:
            continue
        yield f"--{name}"
        if value is not True:
            yield from map(str, value if isinstance(value, tuple) else (value,))
