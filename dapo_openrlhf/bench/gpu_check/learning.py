"""Shows that the quickstart learns on the GPU: the same small model, prompts and reward as on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dapo_openrlhf
from dapo_openrlhf.bench.gpu_check.check import Check, Found

ROOT = Path(dapo_openrlhf.__file__).parents[1]
GAIN = 0.2
"""Accuracy that the quickstart must gain; on a CPU it goes from 0.43 to 0.97."""


def learn(gpus: int) -> Callable[[Path], dict[str, Any]]:
    """The function that runs the quickstart; with two GPUs engine and trainer have one each."""

    def run(folder: Path) -> dict[str, Any]:
        model, prompts = folder / "quickstart" / "model", folder / "quickstart" / "prompts"
        _python("scripts/build_quickstart_model.py", "--output", str(model))
        _python("data/quickstart_prompts.py", "--output", str(prompts))
        settings = {
            "run.dir": folder / "runs",
            "actor.model_name_or_path": model,
            "data.prompt_dataset": prompts / "train.jsonl",
            "eval.dataset": prompts / "heldout.jsonl",
            "train.colocate_all": str(gpus == 1).lower(),
        }
        written = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        _python("-m", "dapo_openrlhf", "train", "--config", "configs/quickstart_gpu.yaml", *written)
        summary: dict[str, Any] = json.loads((folder / "runs" / "quickstart" / "summary.json").read_text())
        return {name: summary[name] for name in ("accuracy_before", "accuracy_after", "train_seconds", "steps")}

    return run


def assess_learning(figures: Found) -> list[Check]:
    """Accuracy must have risen by :data:`GAIN`."""
    found = figures["learn"]
    before, after = found["accuracy_before"], found["accuracy_after"]
    return [
        Check(
            name="quickstart: accuracy",
            measured=f"{before:.3f} to {after:.3f} in {found['steps']} steps, {found['train_seconds']:.0f} s",
            expected=f"a gain of {GAIN} or more; 0.43 to 0.97 on a CPU",
            passed=after - before >= GAIN,
        )
    ]


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT)
