"""The arms of a comparison: one run each of this pipeline or of stock OpenRLHF on the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from dapo_openrlhf.bench.stock.run import StockMode, StockSettings, run_stock
from dapo_openrlhf.bench.workload.chain import Workload

WARM_UP_STEPS = 3
"""First steps of a run that are not counted."""


class BenchError(RuntimeError):
    """A run of this pipeline failed; the message ends with what it printed last."""


@dataclass(frozen=True, kw_only=True)
class ArmRun:
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


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One competitor."""

    name: str
    run: Callable[[Path], ArmRun]
    """Does one run, with a folder for what it leaves."""


def our_arm(max_staleness: int, workload: Workload, settings: StockSettings) -> Arm:
    """This pipeline at K = ``max_staleness``."""

    def run(folder: Path) -> ArmRun:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(our_settings(max_staleness, workload, settings, folder)))
        command = [sys.executable, "-m", "dapo_openrlhf", "train", "--config", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=settings.timeout)
        if result.returncode:
            raise BenchError(f"K = {max_staleness} failed:\n{(result.stdout + result.stderr)[-2000:]}")
        return read_our_run(folder / "run" / "events.jsonl")

    return Arm(name=f"this project, K = {max_staleness}", run=run)


def our_settings(max_staleness: int, workload: Workload, settings: StockSettings, folder: Path) -> dict[str, Any]:
    """Our configuration of the work that ``settings`` describe for stock."""
    return {
        "device": "cpu",
        "run": {"name": "run", "dir": str(folder)},
        "actor": {
            "model_name_or_path": str(workload.model),
            "adam": {"lr": settings.learning_rate, "betas": list(settings.adam_betas)},
            "eps_clip_low_high": list(settings.eps_clip_low_high),
            "lr_warmup_steps": 0,
        },
        "ds": {"param_dtype": settings.param_dtype, "attn_implementation": "sdpa", "zero_stage": 2},
        "vllm": {"max_num_seqs": settings.max_num_seqs, "kv_cache_memory_bytes": settings.kv_cache_memory_bytes},
        "rollout": {
            "batch_size": settings.batch_size,
            "n_samples_per_prompt": settings.n_samples_per_prompt,
            "max_new_tokens": workload.recipe.max_new_tokens,
        },
        "train": {
            "batch_size": settings.train_batch_size,
            "max_steps": settings.steps,
            "max_epochs": settings.max_epochs,
            "max_tokens_per_gpu": settings.max_tokens_per_gpu,
            "seed": settings.seed,
        },
        "async": {"max_staleness": max_staleness},
        "reward": {"remote_url": str(workload.reward), "overlong_filtering_enable": False},
        "data": {"prompt_dataset": str(workload.prompts), "max_len": workload.recipe.max_len},
    }


def read_our_run(events_file: Path) -> ArmRun:
    """Figures of a run, from its event log."""
    events = [json.loads(line) for line in events_file.read_text().splitlines()]

    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    done = of("step_done")[WARM_UP_STEPS - 1 :]
    begin, end, steps = done[0]["time"], done[-1]["time"], len(done) - 1
    batches = of("batch_taken")[WARM_UP_STEPS:]
    offset = of("run_started")[0]["unix_time"]
    spans = [span for event in of("worker_spans") for span in event["spans"]]

    def busy(worker: str) -> list[float]:
        """Seconds a worker worked in each counted step."""
        mine = [(span["start"] - offset, span["end"] - offset) for span in spans if span["worker"] == worker]
        return [
            sum(max(0.0, min(stop, later["time"]) - max(start, step["time"])) for start, stop in mine)
            for step, later in pairwise(done)
        ]

    generate, train = busy("engine 0"), busy("trainer 0")
    ages = [age for batch in batches for age in batch["ages"]]
    judged = [event for event in of("group_judged") if begin < event["time"] <= end]
    live = [event["seconds"] for event in of("publication_live")[WARM_UP_STEPS:]]
    return ArmRun(
        step_seconds=tuple(later["time"] - step["time"] for step, later in pairwise(done)),
        trained_tokens=sum(batch["response_tokens"] for batch in batches),
        generate_seconds=sum(generate) / steps,
        train_seconds=sum(train) / steps,
        busier_seconds=sum(map(max, generate, train)) / steps,
        publish_seconds=sum(live) / len(live),
        mean_age=sum(ages) / len(ages),
        max_age=max(ages),
        pass_rate=sum(event["keep"] for event in judged) / len(judged),
    )


STOCK_NAMES: dict[StockMode, str] = {
    "sync": "stock OpenRLHF, synchronous",
    "async": "stock OpenRLHF, asynchronous",
    "async-partial": "stock OpenRLHF, asynchronous, partial rollout",
}


def stock_arm(mode: StockMode, workload: Workload, settings: StockSettings) -> Arm:
    """Stock OpenRLHF's own trainer."""

    def run(folder: Path) -> ArmRun:
        stock = run_stock(mode, workload, settings, folder / "stock.json")
        counted = stock.steps[WARM_UP_STEPS:]
        steps = len(counted)
        train = [step.make_experience + step.ppo_train for step in counted]
        return ArmRun(
            step_seconds=tuple(stock.step_seconds[WARM_UP_STEPS - 1 :]),
            trained_tokens=sum(step.response_tokens for step in counted),
            generate_seconds=sum(step.generation for step in counted) / steps,
            train_seconds=sum(train) / steps,
            busier_seconds=sum(max(step.generation, its) for step, its in zip(counted, train, strict=True)) / steps,
            publish_seconds=sum(step.broadcast for step in counted) / steps,
            mean_age=None,
            max_age=None,
            pass_rate=settings.batch_size * steps / sum(step.generated_groups for step in counted),
        )

    return Arm(name=STOCK_NAMES[mode], run=run)
