"""The parts of the check in the order in which they run, and what is wanted of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.gpu_check.check import Check, Part
from dapo_openrlhf.bench.gpu_check.installation import judge_versions, versions
from dapo_openrlhf.bench.gpu_check.settings import SAMPLES, settings_at
from dapo_openrlhf.bench.gpu_check.training import judge_run, run_of
from dapo_openrlhf.bench.workload.random_model import build_work, random_workload
from dapo_openrlhf.config.loading import build_config


def work(folder: Path) -> dict[str, Any]:
    """Build the model and the prompts of all later parts."""
    return {"parameters": build_work(random_workload(folder))}


def agreement(folder: Path) -> dict[str, Any]:
    """Compare engine and trainer before and after ten publications."""
    from dapo_openrlhf.backend.run.inputs import read_prompts
    from dapo_openrlhf.bench.gpu_check.agreement import measure

    settings = settings_at(0, random_workload(folder), steps=1, learning_rate=1e-5)
    settings["train"]["batch_size"] = SAMPLES
    config = build_config(settings, source="gpu_check")
    return measure(config, list(read_prompts(config))).as_dict()


def judge_work(found: Mapping[str, Any]) -> list[Check]:
    """Only show what was built."""
    return [Check(name="model", measured=f"{found['parameters'] / 1e6:.0f} M parameters, random, bf16")]


def judge_agreement(found: Mapping[str, Any]) -> list[Check]:
    """Rounding to bf16 alone makes a difference of about 0.01; publications must not add to it."""
    before, after, unpublished = (found[name]["mean"] for name in ("before", "after", "unpublished"))
    gap = found["publication"] * 1e3
    return [
        Check(
            name="|Δ log-prob| engine, trainer: at first",
            measured=f"mean {before:.4f}, largest {found['before']['largest']:.3f}",
            wanted="mean below 0.02",
            passed=before < 0.02,
        ),
        Check(
            name="... after ten publications",
            measured=f"mean {after:.4f}, largest {found['after']['largest']:.3f} ({unpublished:.4f} unpublished)",
            wanted="mean below 0.02, as at first",
            passed=after < min(0.02, 2 * before + 0.002),
        ),
        Check(name="one publication", measured=f"{gap:.0f} ms, the trainer waits {found['send'] * 1e3:.0f} ms"),
        Check(
            name=f"engine paused for {found['bytes'] / 1e6:.0f} MB",
            measured=f"{found['pause'] * 1e3:.0f} ms",
            wanted="below 50 ms",
            passed=found["pause"] < 0.05,
        ),
    ]


def compare(found: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Checks that need the figures of two parts."""
    if not {"versions", "agreement"} <= found.keys():
        return []
    copy, publication = found["versions"]["copy_seconds"], found["agreement"]["publication"]
    return [Check(name="a publication, in copies on the device", measured=f"{publication / copy:.0f}")]


PARTS = (
    Part(name="versions", limit=45, run=versions, judge=judge_versions),
    Part(name="work", limit=60, run=work, judge=judge_work),
    Part(name="agreement", limit=165, run=agreement, judge=judge_agreement),
    *(Part(name=f"k{k}", limit=150, run=run_of(k), judge=judge_run(k)) for k in (1, 0, 2)),
)
