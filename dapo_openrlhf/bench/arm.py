"""Arms, which do a run of a workload, and the measurement of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapo_openrlhf.algorithm.choices import CorrectionMode
from dapo_openrlhf.backend.device import KV_CACHE_BYTES_ON_CPU

WARM_UP_STEPS = 3
"""Number of steps at the beginning of a run that are not counted."""


class ArmError(RuntimeError):
    """An arm's run failed or took too long; the message ends with the last lines that it printed."""


@dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """The settings that all arms of a comparison share, in OpenRLHF's terms, and how long to wait for a run."""

    batch_size: int = 16
    """P, the number of groups in one step."""
    n_samples_per_prompt: int = 8
    """G, the number of responses in one group."""
    train_batch_size: int = 64
    """Number of responses in one gradient update."""
    max_epochs: int = 1
    """Number of passes over each step's batch."""
    steps: int = 12
    """Number of complete steps that are wanted; there may be a few more."""
    learning_rate: float = 1e-8
    """Learning rate, so small that the model practically does not change."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    eps_clip_low_high: tuple[float, float] = (0.2, 0.28)
    is_correction_mode: CorrectionMode = "clip"
    is_correction_threshold: tuple[float, float] = (0.0, 2.0)
    param_dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type of the parameters, in the trainer and in the engine."""
    max_tokens_per_gpu: int = 4096
    """Most tokens of one micro-batch; samples are packed, as OpenRLHF recommends."""
    async_queue_size: int = 1
    """Number of batches that stock's asynchronous trainer queues; 1 is its default."""
    max_num_seqs: int = 512
    """Most responses that the engine generates at once."""
    kv_cache_memory_bytes: int = KV_CACHE_BYTES_ON_CPU
    seed: int = 42
    timeout: float = 1800.0
    """Seconds the whole run may take."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The measurement of one run's counted steps. Times are in seconds."""

    step_seconds: tuple[float, ...]
    trained_tokens: float
    """Number of response tokens trained in these steps."""
    generate_seconds: float
    """Time that the engine was busy, per step."""
    train_seconds: float
    """Time that the trainer was busy, per step."""
    busier_seconds: float
    """Time that the busier of the two in each step was busy, per step. It is at least the longer of the two means, and
    exceeds it the more, the more steps differ."""
    publish_seconds: float
    """Duration of a publication, from reading the trainer's weights until the engine uses them; stock's
    ``timing/broadcast``."""
    mean_age: float | None
    """Mean policy age of the trained groups; None where the arm does not know."""
    max_age: int | None
    pass_rate: float
    accuracy: float | None = None
    """Held-out accuracy after the last step; None where it was not measured."""
    foreign_load: float = 0.0
    """Share of the machine's processor time that other programs took meanwhile, 0 to 1."""
    wall_seconds: float = 0.0
    """Duration of the whole run, its start and its end included."""

    @property
    def seconds(self) -> float:
        """Duration of all counted steps together."""
        return sum(self.step_seconds)

    @property
    def trained_tokens_per_second(self) -> float:
        """Response tokens trained per second of wall-clock time."""
        return self.trained_tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the systems that are compared."""

    name: str
    run: Callable[[Path], Measurement]
    """Does one run and writes its files into a folder. Raises :class:`ArmError`."""
    steps_done: Callable[[Path], int | None] = lambda folder: None
    """Number of steps that a run has done so far, by the files in its folder; None where the arm does not know."""
    devices: int = 2
    """Number of devices that a run uses, those of engines included."""
