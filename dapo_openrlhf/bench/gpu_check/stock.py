"""Stock OpenRLHF on the same work, on request, with unmodified files.

On two GPUs it is its asynchronous trainer. On one, NCCL refuses to connect two processes, so only its synchronous
trainer can run there, which puts engine and trainer to sleep in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.arm import WARM_UP_STEPS, ArmSettings
from dapo_openrlhf.bench.gpu_check.check import Check, Found
from dapo_openrlhf.bench.gpu_check.settings import GROUPS, MEMORY_UTILIZATION, PACK_TOKENS, SAMPLES
from dapo_openrlhf.bench.stock.arm import LOG, STOCK_NAMES, TENSORBOARD, failure, measure, run_driver
from dapo_openrlhf.bench.stock.command import StockMode, environment_on_gpus, stock_arguments
from dapo_openrlhf.bench.stock.steps import complete_steps, read_scalars
from dapo_openrlhf.bench.workload.random_model import random_workload
from dapo_openrlhf.bench.workload.workload import Workload

MODES: Mapping[int, StockMode] = {1: "sync", 2: "async"}
"""Its trainer by the number of GPUs."""
SHARING = ("--train.colocate_all", "--vllm.enable_sleep", "--ds.enable_sleep")
SETTINGS = ArmSettings(
    batch_size=GROUPS,
    n_samples_per_prompt=SAMPLES,
    train_batch_size=GROUPS * SAMPLES // 2,
    steps=WARM_UP_STEPS + 2,
    param_dtype="bf16",
    max_tokens_per_gpu=PACK_TOKENS,
    timeout=590.0,
)


def arguments(work: Workload, folder: Path, *, gpus: int) -> list[str]:
    """OpenRLHF's command line for the work of the check."""
    memory = ("--vllm.gpu_memory_utilization", str(MEMORY_UTILIZATION[gpus]))
    flash = ("--ds.attn_implementation", "flash_attention_2")
    sharing = SHARING if gpus == 1 else ()
    return [*stock_arguments(MODES[gpus], work, SETTINGS, folder), *flash, *memory, *sharing]


def run_stock(gpus: int) -> Callable[[Path], dict[str, Any]]:
    """The function that runs stock OpenRLHF on as many GPUs."""

    def run(folder: Path) -> dict[str, Any]:
        output = folder / "stock"
        output.mkdir()
        words = arguments(random_workload(folder), output, gpus=gpus)
        started = time.time()  # TensorBoard's clock
        run_driver(words, environment_on_gpus(output), folder / LOG, SETTINGS.timeout)
        steps = list(complete_steps(read_scalars(output / TENSORBOARD), SETTINGS, started))
        if len(steps) <= WARM_UP_STEPS:
            raise failure(f"did {len(steps)} complete steps, of which {WARM_UP_STEPS} do not count", folder / LOG)
        return {"name": STOCK_NAMES[MODES[gpus]], **_figures(measure(steps, SETTINGS).step_seconds)}

    return run


def _figures(step_seconds: Sequence[float]) -> dict[str, Any]:
    return {"step_seconds": list(step_seconds), "step_median": statistics.median(step_seconds)}


def assess_stock(figures: Found) -> list[Check]:
    """Only shown, beside K = 1."""
    found = figures["stock"]
    ours = figures.get("k1", {}).get("step_median")
    beside = f", {found['step_median'] / ours:.1f} times K = 1" if ours else ""
    return [Check(name=f"{found['name']}: a step", measured=f"{found['step_median']:.2f} s{beside}")]
