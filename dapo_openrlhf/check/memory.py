"""Whether engine and trainer fit into the memory of a device, by sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dapo_openrlhf.backend.device import KV_CACHE_BYTES_ON_CPU
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.plan.memory import (
    OPTIMIZER_BYTES,
    TYPE_BYTES,
    EngineMemory,
    engine_memory,
    trained_parameters,
    trainer_memory,
)
from dapo_openrlhf.plan.shape import ModelShape

UNSURE = 0.15
"""Share by which the sums may be too high: within it they warn, beyond it they fail."""
TIGHT = 0.92
"""Share of a device's memory above which the sums warn."""
PROCESS_BYTES = 0.7e9
"""Of a process with torch and vLLM or DeepSpeed on a CPU, besides its model."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail where the sums are far beyond the memory, warn where they are near it."""
    config, machines, shape = subject.config, subject.machines(), subject.shape()
    if shape is None:
        yield warned("no sums for this architecture", "watch the first steps' memory (nvidia-smi)")
        return
    if config.device == "cpu":
        yield from _on_cpu(config, shape, machines.each[0].memory_bytes if machines.here else None)
        return
    gpu = machines.gpu_bytes
    if gpu is None:
        yield warned(f"the memory of the GPUs of {machines.where} is not known", "--gpus h100x8 says what they are")
        return
    held = max((machine.held_bytes for machine in machines.each), default=0.0)
    if held > 1e9:
        yield warned(f"other processes hold {_gb(held)} of a GPU", "end them (nvidia-smi shows whose)")
    engine, trainer = engine_memory(config, shape, gpu), trainer_memory(config, shape)
    yield from judge_engine(config, engine)
    shared = {"the engine's claim": engine.claim} if config.train.colocate_all else {}
    yield judge("a GPU of the trainer", {**shared, **trainer}, gpu, _trainer_remedy(config))


def judge_engine(config: Config, engine: EngineMemory) -> Iterator[Finding]:
    """What the KV cache of an engine holds, against the longest sequence and the responses that it gets."""
    longest, cache = config.data.max_len, engine.cache_tokens
    words = f"an engine's GPU: {_gb(engine.claim)} claimed, weights {_gb(engine.weights)}"
    if cache < longest:
        yield failed(
            f"{words}, which leaves {_gb(max(0.0, engine.cache))} for the KV cache: {cache:,} tokens, fewer than one "
            f"sequence of data.max_len {longest:,}",
            "raise vllm.gpu_memory_utilization or vllm.tensor_parallel_size, or shorten data.max_len",
        )
        return
    responses = config.rollout.batch_size * config.rollout.n_samples_per_prompt / config.vllm.num_engines
    at_once = cache / longest
    note = f"{words}, KV cache {_gb(engine.cache)} = {cache:,} tokens, {at_once:,.0f} longest sequences at once"
    if at_once < 4 <= responses:
        yield warned(note, "more vllm.tensor_parallel_size or vllm.gpu_memory_utilization keeps an engine busy")
    else:
        yield passed(note)


def judge(name: str, parts: Mapping[str, float], available: float, remedy: str) -> Finding:
    """Compare a sum with the memory that there is; ``parts`` are in bytes."""
    total = sum(parts.values())
    words = f"{name}: {_gb(total)} of {_gb(available)}: " + ", ".join(
        f"{part} {_gb(size)}" for part, size in parts.items() if size >= 5e7
    )
    if total * (1 - UNSURE) > available:
        return failed(words, remedy)
    return warned(words, remedy) if total > TIGHT * available else passed(words)


def _trainer_remedy(config: Config) -> str:
    ways = []
    if not config.actor.gradient_checkpointing_enable:
        ways.append("actor.gradient_checkpointing_enable true")
    if config.train.max_tokens_per_gpu > config.data.max_len:
        ways.append(f"train.max_tokens_per_gpu {config.data.max_len}")
    if config.trainer_ranks > 1 and config.ds.zero_stage < 3:
        ways.append("ds.zero_stage 3")
    if not config.ds.lora.rank:
        ways.append("ds.lora.rank 16")
    if not config.ds.adam_offload:
        ways.append("ds.adam_offload true")
    if config.train.colocate_all:
        ways.append("a smaller vllm.gpu_memory_utilization")
    return "try " + ", ".join([*ways, "more trainer ranks"])


def _on_cpu(config: Config, shape: ModelShape, available: float | None) -> Iterator[Finding]:
    dtype, count = TYPE_BYTES[config.ds.param_dtype], shape.parameters
    engines, ranks, trained = config.vllm.num_engines, config.trainer_ranks, trained_parameters(config, shape)
    parts = {
        "engines": engines * (count * dtype + (config.vllm.kv_cache_memory_bytes or KV_CACHE_BYTES_ON_CPU)),
        "weights": ranks * count * dtype,
        "gradients": ranks * trained * TYPE_BYTES["fp32"],
        "optimizer": trained * OPTIMIZER_BYTES,
        "activations": ranks * trainer_memory(config, shape)["activations"],
        "processes": (engines + ranks) * PROCESS_BYTES,
    }
    if available is None:
        yield passed(f"all processes together need {_gb(sum(parts.values()))}; the machines' memory is not known")
        return
    yield judge(
        "all processes", parts, available, "free some memory, or use fewer engines and ranks, or a smaller model"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
