"""Memory of trainer ranks and engines on a GPU, by sums; docs/gpus.md compares them with a measured run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dapo_openrlhf.algorithm.choices import ESTIMATORS, DataType
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.plan.shape import ModelShape

TYPE_BYTES: Mapping[DataType, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
OPTIMIZER_BYTES = 12
"""Of the optimizer for each parameter: master weights and two moments in float32."""
NUMBERS_A_LAYER = 34
"""Numbers of the hidden size that a layer keeps of a token for the backward pass."""
LOGITS_BYTES = 2e9
"""Log-probs in chunks of 2^27 logits, with their gradient, and the gradient of the head."""
BUCKET_BYTES = 256e6
"""Largest bucket in which weights travel."""
GATHER_BYTES = 0.5e9
"""What ZeRO-3 gathers at a time for a publication."""
CONTEXT_BYTES = 1.5e9
"""CUDA context, communicators and fragments of one process."""
ENGINE_BYTES = 2e9
"""Activations and graphs of an engine's worker, besides weights and KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """An engine's share of each of its GPUs, in bytes."""

    claim: float
    """What vLLM takes: ``vllm.gpu_memory_utilization`` of the GPU."""
    weights: float
    cache: float
    """What is left of the claim for the KV cache; negative where nothing is."""
    cache_tokens: int
    """Number of tokens that the cache of all its GPUs holds."""


def trainer_memory(config: Config, shape: ModelShape) -> Mapping[str, float]:
    """Bytes of a trainer rank's GPU by what they are for, largest models and longest micro-batches assumed."""
    ranks, stage, dtype = config.trainer_ranks, config.ds.zero_stage, TYPE_BYTES[config.ds.param_dtype]
    trained, count = trained_parameters(config, shape), shape.parameters
    held = 2 if ESTIMATORS[config.algo.advantage.estimator].critic else 1
    models = held + (config.algo.kl.init_coef > 0)
    weights = (
        count + trained if config.ds.lora.rank else models * count
    )  # with its adapters off a model is its reference
    gradient = TYPE_BYTES[config.ds.grad_accum_dtype or config.ds.param_dtype]
    staging = 2 * BUCKET_BYTES + (GATHER_BYTES if stage == 3 else 0)
    return {
        "weights": weights * dtype / (ranks if stage == 3 else 1),
        "gradients": trained * gradient / (ranks if stage >= 2 else 1),
        "optimizer": 0.0 if config.ds.adam_offload else trained * OPTIMIZER_BYTES / ranks,
        "activations": activation_bytes(config, shape),
        "logits": LOGITS_BYTES,
        "staging copies": staging + (2 * BUCKET_BYTES if config.weight_transfer == "ipc" else 0),
        "context": CONTEXT_BYTES,
    }


def trained_parameters(config: Config, shape: ModelShape) -> int:
    """Number of parameters that have gradients and an optimizer's state: of policy and critic, or of the adapters alone."""
    lora = config.ds.lora
    if lora.rank:
        return shape.adapters(lora.rank, lora.target_modules)
    return (2 if ESTIMATORS[config.algo.advantage.estimator].critic else 1) * shape.parameters


def activation_bytes(config: Config, shape: ModelShape) -> float:
    """Bytes of one micro-batch's activations; with gradient checkpointing one layer's, and every layer's input."""
    tokens = max(config.train.max_tokens_per_gpu, config.data.max_len)
    row = tokens * shape.hidden * TYPE_BYTES[config.ds.param_dtype]
    if config.actor.gradient_checkpointing_enable:
        return float(row * (NUMBERS_A_LAYER + shape.layers))
    return float(row * NUMBERS_A_LAYER * shape.layers)


def engine_memory(config: Config, shape: ModelShape, gpu_bytes: float) -> EngineMemory:
    """An engine's memory on GPUs of ``gpu_bytes`` each."""
    workers, dtype = config.vllm.tensor_parallel_size, TYPE_BYTES[config.ds.param_dtype]
    weights = shape.parameters * dtype / workers
    others = ENGINE_BYTES + 2 * BUCKET_BYTES
    claim = config.vllm.gpu_memory_utilization * gpu_bytes
    cache = claim - weights - others
    if config.vllm.kv_cache_memory_bytes is not None:
        cache = float(config.vllm.kv_cache_memory_bytes)
        claim = weights + others + cache
    token = shape.kv_bytes * dtype / 2
    return EngineMemory(claim=claim, weights=weights, cache=cache, cache_tokens=max(0, int(cache * workers / token)))


def checkpoint_bytes(config: Config, shape: ModelShape) -> tuple[float, float]:
    """Bytes of the trained model, and of a checkpoint to resume from; both with the average of the weights if it is kept."""
    model = shape.parameters * TYPE_BYTES[config.ds.param_dtype]
    state = trained_parameters(config, shape) * OPTIMIZER_BYTES
    if config.train.enable_ema:
        model *= 2
        averaged = trained_parameters(config, shape) if config.ds.lora.rank else shape.parameters
        state += averaged * TYPE_BYTES["fp32"]
    return float(model), float(model + state)
