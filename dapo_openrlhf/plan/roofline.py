"""Speeds of engines, trainer and weight sync on a GPU that nobody has measured, from what it can do at most.

The shares below turn peaks into what runs reach. They come from one H200 with a model of 0.5 B parameters
(docs/gpus.md) and are no more than a first guess elsewhere: a run of ten steps, given to ``plan RUN``, is better.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapo_openrlhf.plan.gpus import Gpu
from dapo_openrlhf.plan.scenario import EngineSpeed, SyncSpeed, TrainerSpeed
from dapo_openrlhf.plan.shape import ModelShape

BANDWIDTH_SHARE = 0.7
"""Of the peak memory bandwidth, reached while decoding."""
DECODE_FLOPS_SHARE = 0.5
"""Of the peak FLOP/s, reached by the matrix products of a large decoding batch and of prefill."""
TRAIN_FLOPS_SHARE = 0.3
"""Model FLOPs utilisation of updates; 0.25 was measured with a model of 0.5 B parameters, 0.3 to 0.45 are usual above."""
STEP_OVERHEAD = 5e-3
"""Seconds of a decode step that do not depend on the GPU: launches, scheduling, Python."""
SEQUENCE_OVERHEAD = 4e-6
"""Seconds of a decode step for each sequence: sampling and bookkeeping."""
LINK_SHARE = 0.5
"""Of a link's peak, reached by broadcasts and by tensor parallelism."""
RELOAD_PER_TENSOR = 0.3e-3
"""Seconds of Python for each tensor that an engine loads."""
TRAINER_STEP = 0.5
"""Seconds of a training step that do not depend on its tokens: planning, optimizer, statistics."""
OLD_LOGPROBS = 1 / 3
"""Of the cost of an update: the forward pass for the old log-probs."""
MODEL_STATES = 18
"""Bytes of a trainer for each parameter: bf16 weights, and gradients, master weights and two moments in float32."""
ACTIVATIONS_SHARE = 0.35
"""Of a trainer's memory that activations and buffers need."""
CACHE_SHARE = 0.3
"""Of an engine's memory that its KV cache should have at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """GPUs of one kind, in machines of ``per_node``."""

    gpu: Gpu
    per_node: int = 8


def engine_speed(machine: Machine, shape: ModelShape, *, tensor_parallel: int, context: float) -> EngineSpeed:
    """The speed of an engine of ``tensor_parallel`` GPUs; ``context`` is the usual length of a sequence, in tokens."""
    gpu = machine.gpu
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE * tensor_parallel
    flops = gpu.flops * DECODE_FLOPS_SHARE * tensor_parallel
    # Two all-reduces of the hidden state per layer and sequence, in bf16, each of which moves it twice.
    talk = 0.0 if tensor_parallel == 1 else 8 * shape.layers * shape.hidden / (gpu.link * LINK_SHARE)
    room = gpu.memory * tensor_parallel * 0.9 - shape.bytes
    return EngineSpeed(
        step=STEP_OVERHEAD + shape.bytes / bandwidth,
        per_sequence=SEQUENCE_OVERHEAD + 2 * shape.parameters / flops + talk,
        per_context_token=shape.kv_bytes / bandwidth,
        per_prompt_token=2 * shape.parameters / flops,
        most_sequences=max(1, min(1024, int(room / (shape.kv_bytes * max(1.0, context))))),
    )


def trainer_speed(machine: Machine, shape: ModelShape, *, ranks: int, old_logprobs: bool) -> TrainerSpeed:
    """The speed of all ranks together."""
    work = 6 * shape.parameters * (1 + (OLD_LOGPROBS if old_logprobs else 0.0))
    return TrainerSpeed(step=TRAINER_STEP, per_token=work / (machine.gpu.flops * TRAIN_FLOPS_SHARE * ranks))


def sync_speed(machine: Machine, shape: ModelShape, *, tensor_parallel: int) -> SyncSpeed:
    """The speed of a broadcast: trainer and engines take part together, and then each engine processes its weights."""
    moved = shape.bytes / (machine.gpu.link * LINK_SHARE)
    loaded = RELOAD_PER_TENSOR * shape.tensors + shape.bytes / tensor_parallel / (machine.gpu.bandwidth * 0.25)
    return SyncSpeed(send=moved + loaded, deliver=0.01, pause=moved + loaded)


def engine_fits(machine: Machine, shape: ModelShape, *, tensor_parallel: int) -> bool:
    """Whether weights and some KV cache fit into an engine's memory."""
    return shape.bytes <= (0.9 - CACHE_SHARE) * machine.gpu.memory * tensor_parallel


def trainer_fits(machine: Machine, shape: ModelShape, *, ranks: int) -> bool:
    """Whether the model's states, divided by ZeRO-3, leave room for activations."""
    return MODEL_STATES * shape.parameters <= (1 - ACTIVATIONS_SHARE) * machine.gpu.memory * ranks
