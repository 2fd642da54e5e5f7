"""This pipeline as an arm: ``dapo-openrlhf train`` in a process of its own, measured by its event log."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import yaml

from dapo_openrlhf.bench.arm import WARM_UP_STEPS, Arm, ArmError, ArmSettings, Measurement
from dapo_openrlhf.bench.process_tree import last_lines, run_tree
from dapo_openrlhf.bench.workload.workload import Workload
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Evaluated,
    GroupJudged,
    PublicationLive,
    RunStarted,
    StepDone,
    WorkerSpans,
)

EVENTS = "events.jsonl"


def pipeline_arm(max_staleness: int, workload: Workload, settings: ArmSettings) -> Arm:
    """This pipeline at K = ``max_staleness`` on the work that it shares with stock OpenRLHF."""
    name = f"K = {max_staleness}"

    def run(folder: Path) -> Measurement:
        return run_pipeline(
            name, pipeline_settings(max_staleness, workload, settings, folder), folder, settings.timeout
        )

    return Arm(name=f"this project, {name}", run=run, steps_done=steps_done)


def run_pipeline(name: str, settings: Mapping[str, Any], folder: Path, timeout: float) -> Measurement:
    """Train in a process of its own, with its run called ``run`` in ``folder``. Raises :class:`ArmError`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "dapo_openrlhf", "train", "--config", str(file)]
    log = folder / "train.log"
    try:
        status = run_tree(command, os.environ, log, timeout)
    except TimeoutExpired:
        raise ArmError(f"{name} took over {timeout:g} s:\n{last_lines(log, 40)}") from None
    if status:
        raise ArmError(f"{name} ended with exit status {status}:\n{last_lines(log, 40)}")
    return read_run(folder / "run" / EVENTS)


def steps_done(folder: Path) -> int:
    """Number of steps that a run of this pipeline has done so far."""
    file = folder / "run" / EVENTS
    return sum(isinstance(logged.event, StepDone) for logged in read(file)) if file.exists() else 0


def pipeline_settings(max_staleness: int, workload: Workload, settings: ArmSettings, folder: Path) -> dict[str, Any]:
    """This pipeline's configuration for the work that all arms are given."""
    work: dict[str, Any] = {
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
            "max_new_tokens": workload.max_new_tokens,
        },
        "train": {
            "batch_size": settings.train_batch_size,
            "max_steps": settings.steps,
            "max_epochs": settings.max_epochs,
            "max_tokens_per_gpu": settings.max_tokens_per_gpu,
            "seed": settings.seed,
        },
        "async": {"max_staleness": max_staleness},
        "reward": {"overlong_filtering_enable": False},
        "data": {"prompt_dataset": str(workload.prompts), "max_len": workload.max_len},
    }
    setting, file = workload.judge
    section, key = setting.split(".")
    work[section][key] = str(file)
    return work


def read_run(events_file: Path) -> Measurement:
    """Figures of a run, from its event log. Raises :class:`ArmError` if too few steps were done."""
    log = list(read(events_file))
    done = [logged.time for logged in log if isinstance(logged.event, StepDone)][WARM_UP_STEPS - 1 :]
    if len(done) < 3:
        raise ArmError(f"{events_file} has {max(0, len(done) - 1)} steps after the warm-up; two or more are needed")
    begin, end, steps = done[0], done[-1], len(done) - 1
    batches = [logged.event for logged in log if isinstance(logged.event, BatchTaken)][WARM_UP_STEPS:]
    begun = next(logged.event for logged in log if isinstance(logged.event, RunStarted))
    spans = [span for logged in log if isinstance(logged.event, WorkerSpans) for span in logged.event.spans]

    def busy(kind: str, workers: int) -> list[float]:
        """Seconds that the workers of a kind were busy in each counted step, in the mean of the workers."""
        mine = [
            (span.start - begun.unix_time, span.end - begun.unix_time)
            for span in spans
            if span.worker.startswith(f"{kind} ")
        ]
        return [
            sum(max(0.0, min(stop, after) - max(start, before)) for start, stop in mine) / workers
            for before, after in pairwise(done)
        ]

    generate, train = busy("engine", begun.engines), busy("trainer", begun.trainer_ranks)
    ages = [age for batch in batches for age in batch.ages]
    judged = [logged.event for logged in log if isinstance(logged.event, GroupJudged) and begin < logged.time <= end]
    live = [logged.event.seconds for logged in log if isinstance(logged.event, PublicationLive)][WARM_UP_STEPS:]
    accuracies = [logged.event.accuracy for logged in log if isinstance(logged.event, Evaluated)]
    return Measurement(
        step_seconds=tuple(after - before for before, after in pairwise(done)),
        trained_tokens=sum(batch.response_tokens for batch in batches),
        generate_seconds=sum(generate) / steps,
        train_seconds=sum(train) / steps,
        busier_seconds=sum(map(max, generate, train)) / steps,
        publish_seconds=sum(live) / len(live),
        mean_age=sum(ages) / len(ages),
        max_age=max(ages),
        pass_rate=sum(event.keep for event in judged) / len(judged),
        accuracy=accuracies[-1] if accuracies else None,
    )
