"""This pipeline as an arm: ``dapo-openrlhf train`` in a process of its own, measured by its event log."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import yaml

from dapo_openrlhf.bench.arm import WARM_UP_STEPS, Arm, ArmError, ArmSettings, Measurement
from dapo_openrlhf.bench.process_tree import last_lines, run_tree
from dapo_openrlhf.bench.workload.workload import Workload
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import BatchTaken, GroupJudged, PublicationLive, RunStarted, StepDone, WorkerSpans


def pipeline_arm(max_staleness: int, workload: Workload, settings: ArmSettings) -> Arm:
    """This pipeline at K = ``max_staleness``."""

    def run(folder: Path) -> Measurement:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(pipeline_settings(max_staleness, workload, settings, folder)))
        command = [sys.executable, "-m", "dapo_openrlhf", "train", "--config", str(file)]
        log = folder / "train.log"
        try:
            status = run_tree(command, os.environ, log, settings.timeout)
        except TimeoutExpired:
            raise ArmError(f"K = {max_staleness} took over {settings.timeout:g} s:\n{last_lines(log, 40)}") from None
        if status:
            raise ArmError(f"K = {max_staleness} ended with exit status {status}:\n{last_lines(log, 40)}")
        return read_run(folder / "run" / "events.jsonl")

    return Arm(name=f"this project, K = {max_staleness}", run=run)


def pipeline_settings(max_staleness: int, workload: Workload, settings: ArmSettings, folder: Path) -> dict[str, Any]:
    """This pipeline's configuration for the work that all arms are given."""
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
        "reward": {"remote_url": str(workload.reward), "overlong_filtering_enable": False},
        "data": {"prompt_dataset": str(workload.prompts), "max_len": workload.max_len},
    }


def read_run(events_file: Path) -> Measurement:
    """Figures of a run, from its event log."""
    log = list(read(events_file))
    done = [logged.time for logged in log if isinstance(logged.event, StepDone)][WARM_UP_STEPS - 1 :]
    begin, end, steps = done[0], done[-1], len(done) - 1
    batches = [logged.event for logged in log if isinstance(logged.event, BatchTaken)][WARM_UP_STEPS:]
    offset = next(logged.event.unix_time for logged in log if isinstance(logged.event, RunStarted))
    spans = [span for logged in log if isinstance(logged.event, WorkerSpans) for span in logged.event.spans]

    def busy(worker: str) -> list[float]:
        """Seconds that a worker was busy in each counted step."""
        mine = [(span.start - offset, span.end - offset) for span in spans if span.worker == worker]
        return [
            sum(max(0.0, min(stop, after) - max(start, before)) for start, stop in mine)
            for before, after in pairwise(done)
        ]

    generate, train = busy("engine 0"), busy("trainer 0")
    ages = [age for batch in batches for age in batch.ages]
    judged = [logged.event for logged in log if isinstance(logged.event, GroupJudged) and begin < logged.time <= end]
    live = [logged.event.seconds for logged in log if isinstance(logged.event, PublicationLive)][WARM_UP_STEPS:]
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
    )
