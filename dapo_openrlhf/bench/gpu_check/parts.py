"""The parts of the check in the order in which they run, and what is expected of the agreement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.gpu_check.check import Check, Found, Part
from dapo_openrlhf.bench.gpu_check.installation import assess_versions, versions
from dapo_openrlhf.bench.gpu_check.learning import assess_learning, learn
from dapo_openrlhf.bench.gpu_check.marks import Card, held_to
from dapo_openrlhf.bench.gpu_check.settings import SAMPLES, settings_at
from dapo_openrlhf.bench.gpu_check.stock import SETTINGS, assess_stock, run_stock
from dapo_openrlhf.bench.gpu_check.training import assess_run, run_of
from dapo_openrlhf.bench.workload.random_model import build_work, random_workload
from dapo_openrlhf.config.loading import build_config

ROUNDING = 0.02
"""Bound on the mean difference of log-probs of engine and trainer; rounding to bf16 alone makes about 0.008."""


def parts(*, gpus: int, stock: bool) -> tuple[Part, ...]:
    """The parts on one GPU, which engine and trainer share, or on two, and whether stock OpenRLHF is one of them."""
    always = (
        Part(name="versions", limit=45, run=versions(gpus), assess=assess_versions),
        Part(name="work", limit=60, run=work, assess=assess_work),
        Part(name="agreement", limit=165, run=agreement(gpus), assess=assess_agreement),
        *(Part(name=f"k{k}", limit=150, run=run_of(k, gpus=gpus), assess=assess_run(k)) for k in (0, 1)),
        Part(name="learn", limit=240, run=learn(gpus), assess=assess_learning, extra=True),
        Part(name="k2", limit=150, run=run_of(2, gpus=gpus), assess=assess_run(2), extra=True),
    )
    other = Part(name="stock", limit=SETTINGS.timeout + 10, run=run_stock(gpus), assess=assess_stock)
    return (*always, other) if stock else always


def work(folder: Path) -> dict[str, Any]:
    """Build the model and the prompts of all later parts."""
    from safetensors import safe_open

    workload = random_workload(folder)
    parameters = build_work(workload)
    file = workload.model / "model.safetensors"
    with safe_open(file, framework="pt") as stored:
        tensors = len(stored.keys())
    return {"parameters": parameters, "tensors": tensors, "bytes": 2 * parameters}


def agreement(gpus: int) -> Callable[[Path], dict[str, Any]]:
    """The function that compares engine and trainer before and after ten publications."""

    def run(folder: Path) -> dict[str, Any]:
        from dapo_openrlhf.backend.run.inputs import read_prompts
        from dapo_openrlhf.bench.gpu_check.agreement import measure

        settings = settings_at(0, random_workload(folder), gpus=gpus, steps=1, learning_rate=1e-5)
        settings["train"]["batch_size"] = SAMPLES
        config = build_config(settings, source="gpu_check")
        return measure(config, list(read_prompts(config))).as_dict()

    return run


def assess_work(figures: Found) -> list[Check]:
    """Only show what was built."""
    found = figures["work"]
    model = f"{found['parameters'] / 1e6:.0f} M parameters in {found['tensors']} tensors, random, bf16"
    return [Check(name="model", measured=model)]


def assess_agreement(figures: Found) -> list[Check]:
    """Publications must not add to the difference that rounding makes, and pause an engine no longer than expected."""
    found, card = figures["agreement"], Card.of(figures)
    before, after, unpublished = (found[name]["mean"] for name in ("before", "after", "unpublished"))
    published = found["publication"]
    copies = f", {published / (card.copy_seconds_per_byte * card.bytes):.0f} copies on the device" if card else ""
    return [
        Check(
            name="|Δ log-prob| engine, trainer: at first",
            measured=f"mean {before:.4f}, largest {found['before']['largest']:.3f}",
            expected=f"mean below {ROUNDING}",
            passed=before < ROUNDING,
        ),
        Check(
            name="... after ten publications",
            measured=f"mean {after:.4f}, largest {found['after']['largest']:.3f} ({unpublished:.4f} unpublished)",
            expected=f"mean below {ROUNDING}, as at first",
            passed=after < min(ROUNDING, 2 * before + 0.002),
        ),
        Check(
            name="one publication",
            measured=f"{published * 1e3:.0f} ms{copies}; the trainer waits {found['send'] * 1e3:.0f} ms",
        ),
        held_to(
            card.pause if card else None,
            found["pause"] * 1e3,
            name=f"engine paused for {found['bytes'] / 1e6:.0f} MB",
            unit=" ms",
        ),
    ]
