"""Measures whole trainings on the GPU: their speed, and whether the bound on policy age holds."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dapo_openrlhf.bench.gpu_check.check import Check, Found
from dapo_openrlhf.bench.gpu_check.marks import DECODE, Card, Range, held_to
from dapo_openrlhf.bench.gpu_check.settings import settings_at
from dapo_openrlhf.bench.pipeline_arm import read_run
from dapo_openrlhf.bench.workload.random_model import MAX_NEW_TOKENS, PROMPT_TOKENS, random_workload
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import BatchTaken, WorkerSpans

STEPS = 6
"""Number of rollout steps of each run; the first ones are warm-up, see ``arm.WARM_UP_STEPS``."""


def run_of(max_staleness: int, *, gpus: int) -> Callable[[Path], dict[str, Any]]:
    """The function that does a whole training at K = ``max_staleness``."""

    def run(folder: Path) -> dict[str, Any]:
        work = random_workload(folder)
        file = folder / f"k{max_staleness}.yaml"
        file.write_text(yaml.safe_dump(settings_at(max_staleness, work, gpus=gpus, steps=STEPS)))
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


def assess_run(max_staleness: int) -> Callable[[Found], list[Check]]:
    """The function that assesses the run at K = ``max_staleness``.

    The bound on policy age must hold. Engine and trainer are held to marks at K = 0, where they do not work at the same
    time, and a step at K = 1 to the one at K = 0.
    """

    def assess(figures: Found) -> list[Check]:
        found, card = figures[f"k{max_staleness}"], Card.of(figures)
        generate, train, age = found["generate_seconds"], found["train_seconds"], found["max_age"]
        one_by_one = card if max_staleness == 0 else None
        step = _overlapped(figures, card) if max_staleness == 1 else None
        return [
            held_to(step, found["step_median"], name=f"K = {max_staleness}: a step", unit=" s", digits=2),
            Check(name="... of it", measured=f"engine busy {generate:.2f} s, trainer {train:.2f} s"),
            held_to(
                DECODE if one_by_one else None,
                1e3 * generate / MAX_NEW_TOKENS,
                name="... engine, a decode step",
                unit=" ms",
                digits=1,
            ),
            held_to(
                one_by_one.trainer_rate if one_by_one else None,
                found["trainer_tokens_per_second"],
                name="... trainer, tokens/s of its updates",
            ),
            Check(
                name="... largest policy age",
                measured=str(age),
                expected=f"at most {max_staleness}",
                passed=age <= max_staleness,
            ),
            Check(name="... engine paused", measured=f"{found['pause_seconds'] * 1e3:.0f} ms, with work on the card"),
        ]

    return assess


def _overlapped(figures: Found, card: Card | None) -> Range | None:
    """What a step at K = 1 should take; None where K = 0 was not measured."""
    if card is None or "k0" not in figures:
        return None
    alone = figures["k0"]
    return card.overlapped_step(
        generate=alone["generate_seconds"], train=alone["train_seconds"], step=alone["step_median"]
    )
