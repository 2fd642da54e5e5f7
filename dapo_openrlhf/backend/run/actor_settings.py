"""Translates the configuration into settings of vLLM and of OpenRLHF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dapo_openrlhf.algorithm.choices import DataType
from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.inputs import local_model
from dapo_openrlhf.backend.transfer.receivers import WORKER_EXTENSION
from dapo_openrlhf.config.generation import RolloutSection
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.ports import Sampling

ENGINE_SEQUENCES = 512
ENGINE_BATCHED_TOKENS = 8192
ENGINE_DTYPES: Mapping[DataType, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""vLLM's names for the values of ``ds.param_dtype``."""


def model_path(config: Config, checkpoint: Path | None = None) -> str:
    """The model to start from, named so that every process of a cluster finds it."""
    return local_model(config.actor.model_name_or_path if checkpoint is None else str(checkpoint))


def openrlhf_settings(config: Config, checkpoint: Path | None = None) -> dict[str, Any]:
    """Settings that OpenRLHF's classes read, under OpenRLHF's names.

    The model in a checkpoint has the adapters in its weights; they are resumed from the state beside it, and belong to the
    model that the run began with.
    """
    actor, critic = config.actor, config.critic
    slower = 1 + config.async_.max_staleness if config.async_.scale_lr else 1
    lora = config.ds.lora
    return {
        "actor.model_name_or_path": model_path(config, None if lora.rank else checkpoint),
        "actor.gradient_checkpointing_enable": actor.gradient_checkpointing_enable,
        "actor.adam.lr": actor.adam.lr / slower,
        "actor.adam.betas": actor.adam.betas,
        "actor.adam.eps": actor.adam.eps,
        "actor.adam.weight_decay": actor.adam.weight_decay,
        "actor.lr_scheduler": actor.lr_scheduler,
        "actor.lr_warmup_ratio": config.lr_warmup_ratio,
        "actor.max_norm": actor.max_norm,
        "actor.num_gpus_per_node": actor.num_gpus_per_node,
        "critic.model_name_or_path": local_model(critic.model_name_or_path or actor.model_name_or_path),
        "critic.adam.lr": critic.adam.lr / slower,
        "critic.adam.betas": critic.adam.betas,
        "critic.adam.eps": critic.adam.eps,
        "critic.adam.weight_decay": critic.adam.weight_decay,
        "critic.value_clip": critic.value_clip,
        "critic.save_value_network": critic.save_value_network,
        "ds.zero_stage": config.ds.zero_stage,
        "ds.param_dtype": config.ds.param_dtype,
        "ds.grad_accum_dtype": config.ds.grad_accum_dtype,
        "ds.attn_implementation": config.ds.attn_implementation,
        "ds.adam_offload": config.ds.adam_offload,
        "ds.use_liger_kernel": config.ds.use_liger_kernel,
        "ds.lora.rank": lora.rank,
        "ds.lora.alpha": lora.alpha,
        "ds.lora.target_modules": lora.target_modules,
        "train.batch_size": config.train.batch_size,
        "train.enable_ema": config.train.enable_ema,
        "train.ema_beta": config.train.ema_beta,
        "train.seed": config.train.seed,
        "train.full_determinism_enable": config.train.full_determinism_enable,
    }


def training_sampling(rollout: RolloutSection) -> Sampling:
    """How responses to train on are sampled."""
    return Sampling(
        n=rollout.n_samples_per_prompt,
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=max(rollout.top_k, 0),
        min_p=rollout.min_p,
        kept=rollout.truncated,
    )


def engine_args(
    config: Config, device: Device, index: int, checkpoint: Path | None = None, *, training: bool = True
) -> dict[str, Any]:
    """vLLM's arguments for one engine, sized for the work that it will get. What its sampler kept is for training only.

    The checkpoint that a run started from may be deleted before the run ends, see ``ckpt.max_num``. An engine that is
    started later only needs a model of the same shape, because it gets its weights from a publication.
    """
    vllm = config.vllm
    begin = checkpoint if checkpoint is not None and checkpoint.is_dir() else None
    return {
        "model": model_path(config, begin),
        "dtype": ENGINE_DTYPES[config.ds.param_dtype],
        "trust_remote_code": config.actor.trust_remote_code,
        "seed": config.train.seed + index,
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "max_model_len": config.data.max_len,
        "max_num_seqs": max_num_seqs(config),
        "max_num_batched_tokens": vllm.max_num_batched_tokens or max(ENGINE_BATCHED_TOKENS, config.data.max_len),
        "enable_prefix_caching": vllm.enable_prefix_caching,
        "enforce_eager": vllm.enforce_eager,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        **({"return_sampling_mask": True} if training and config.rollout.truncated else {}),
        **_transfer_settings(config),
        **device.engine_settings(
            kv_cache_memory_bytes=vllm.kv_cache_memory_bytes, gpu_memory_utilization=vllm.gpu_memory_utilization
        ),
    }


def max_num_seqs(config: Config) -> int:
    """Number of responses that one engine generates at once."""
    slots = (config.async_.max_staleness + 1) * config.rollout.batch_size
    groups = slots if config.async_.over_sampling == 1 else 2 * slots
    sequences = -(-groups // config.vllm.num_engines) * config.rollout.n_samples_per_prompt
    return config.vllm.max_num_seqs or min(sequences, ENGINE_SEQUENCES)


def _transfer_settings(config: Config) -> dict[str, Any]:
    """vLLM's arguments for the weight sync, and for workers that run in processes of their own."""
    settings: dict[str, Any] = {"worker_extension_cls": WORKER_EXTENSION}
    if config.vllm.tensor_parallel_size > 1:
        settings["distributed_executor_backend"] = "mp"  # all on the actor's own GPUs, without Ray inside Ray
    return settings
