"""Arms: whoever does a run of a workload, and what a run is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapo_openrlhf.backend.device import KV_CACHE_BYTES_ON_CPU

WARM_UP_STEPS = 3
"""First steps of a run that are not counted."""


class ArmError(RuntimeError):
    """An arm's run failed or took too long; the message ends with what it printed last."""


@dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """What is equal for all arms of a comparison, in OpenRLHF's terms, and how long to wait for a run."""

    batch_size: int = 16
    """P: groups of one step."""
    n_samples_per_prompt: int = 8
    """G: responses of one group."""
    train_batch_size: int = 64
    """Responses of one gradient update."""
    max_epochs: int = 1
    """Passes over each step's batch."""
    steps: int = 12
    """Complete steps wanted; there may be a few more."""
    learning_rate: float = 1e-8
    """So small that the model stays as it is."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    eps_clip_low_high: tuple[float, float] = (0.2, 0.28)
    is_correction_mode: Literal["clip", "mask"] = "clip"
    is_correction_threshold: tuple[float, float] = (0.0, 2.0)
    param_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the trainer and of the engine."""
    max_tokens_per_gpu: int = 4096
    """Tokens of one micro-batch; samples are packed, as OpenRLHF recommends."""
    async_queue_size: int = 1
    """Batches its asynchronous trainer queues; 1 is its default."""
    max_num_seqs: int = 512
    """Responses the engine generates at once, at most."""
    kv_cache_memory_bytes: int = KV_CACHE_BYTES_ON_CPU
    seed: int = 42
    timeout: float = 1800.0
    """Seconds the whole run may take."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run's counted steps. Times are in seconds."""

    step_seconds: tuple[float, ...]
    trained_tokens: float
    """Response tokens trained in these steps."""
    generate_seconds: float
    """Per step, the engine at work."""
    train_seconds: float
    """Per step, the trainer at work."""
    busier_seconds: float
    """Per step, whichever of the two worked longer in that step: at least the longer of their means, and the more so, the
    more steps differ."""
    publish_seconds: float
    """Per publication, from reading the trainer's weights to the engine using them; stock's ``timing/broadcast``."""
    mean_age: float | None
    """Mean policy age of the trained groups; None where the arm does not know."""
    max_age: int | None
    pass_rate: float

    @property
    def seconds(self) -> float:
        """All counted steps together."""
        return sum(self.step_seconds)

    @property
    def trained_tokens_per_second(self) -> float:
        """Response tokens trained per second of wall-clock time."""
        return self.trained_tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One competitor."""

    name: str
    run: Callable[[Path], Measurement]
    """Does one run, with a folder for what it leaves. Raises :class:`ArmError`."""
