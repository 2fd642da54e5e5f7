"""Measures whole trainings on the GPU: their speed, and whether the bound on policy age holds."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dapo_openrlhf.bench.gpu_check.check import Check
from dapo_openrlhf.bench.gpu_check.settings import settings_at
from dapo_openrlhf.bench.pipeline_arm import read_run
from dapo_openrlhf.bench.workload.random_model import PROMPT_TOKENS, random_workload
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import BatchTaken, WorkerSpans

STEPS = 6
"""Number of rollout steps of each run; the first ones are warm-up, see ``arm.WARM_UP_STEPS``."""


def run_of(max_staleness: int) -> Callable[[Path], dict[str, Any]]:
    """The function that does a whole training at K = ``max_staleness``."""

    def run(folder: Path) -> dict[str, Any]:
        work = random_workload(folder)
        file = folder / f"k{max_staleness}.yaml"
        file.write_text(yaml.safe_dump(settings_at(max_staleness, work, steps=STEPS)))
        subprocess.run([sys.executable, "-m", "dapo_openrlhf", "train", "--config", str(file)], check=True)
        return figures(folder / "runs" / f"k{max_staleness}" / "events.jsonl")

    return run


def figures(events_file: Path) -> dict[str, Any]:
    """Figures of a run, from its event log."""
    run = read_run(events_file)
    events = [logged.event for logged in read(events_file)]
    spans = [span for event in events if isinstance(event, WorkerSpans) for span in event.spans]
    updates = [span.seconds for span in spans if span.kind == "update"]
    batches = [event for event in events if isinstance(event, BatchTaken)]
    tokens = sum(batch.response_tokens + batch.responses * PROMPT_TOKENS for batch in batches)
    per_update = tokens / len(updates)
    return asdict(run) | {
        "step_median": statistics.median(run.step_seconds),
        # The first update of a run is slower, since kernels are chosen then.
        "trainer_tokens_per_second": per_update / statistics.median(updates[1:]),
        "pause_seconds": statistics.median(span.seconds for span in spans if span.kind == "load_weights"),
    }


def judge_run(max_staleness: int) -> Callable[[Mapping[str, Any]], list[Check]]:
    """The bound on policy age must hold; at K = 1 the run must also be fast enough."""

    def judge(found: Mapping[str, Any]) -> list[Check]:
        step, rate, age = found["step_median"], found["trainer_tokens_per_second"], found["max_age"]
        limited = max_staleness == 1
        return [
            Check(
                name=f"K = {max_staleness}: a step",
                measured=f"{step:.1f} s (generate {found['generate_seconds']:.1f}, train {found['train_seconds']:.1f})",
                wanted="below 9 s" if limited else "",
                passed=step < 9 if limited else None,
            ),
            Check(
                name="... trainer, tokens/s",
                measured=f"{rate:,.0f}",
                wanted="45,000 or more" if limited else "",
                passed=rate >= 45_000 if limited else None,
            ),
            Check(
                name="... largest policy age",
                measured=str(age),
                wanted=f"at most {max_staleness}",
                passed=age <= max_staleness,
            ),
            Check(name="... engine paused", measured=f"{found['pause_seconds'] * 1e3:.0f} ms while it shares the GPU"),
        ]

    return judge
