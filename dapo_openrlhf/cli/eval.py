"""``dapo-openrlhf eval``: a model's held-out accuracy, with the engines and the reward that training uses."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from dapo_openrlhf.config import Config, ConfigError


def evaluate(config: Config, *, json_file: Path | None) -> int:
    """Measure ``actor.model_name_or_path`` on ``eval.dataset``; returns the exit status."""
    if config.eval.dataset is None:
        raise ConfigError("eval.dataset: must be set to measure anything")
    from dapo_openrlhf.backend import launch

    started = time.monotonic()
    measured = launch.evaluate(config, launch.check_inputs(config, training=False))
    result = {
        "model": config.actor.model_name_or_path,
        "dataset": config.eval.dataset,
        "accuracy": measured.accuracy,
        "problems": measured.problems,
        "responses": measured.responses,
        "n_samples_per_prompt": config.eval.n_samples_per_prompt,
        "temperature": config.eval.temperature,
        "top_p": config.eval.top_p,
        "seconds": round(time.monotonic() - started, 1),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"avg@{config.eval.n_samples_per_prompt} {measured.accuracy:.1%} on {measured.problems} problems of "
        f"{config.eval.dataset} ({measured.responses} responses, T {config.eval.temperature:g}, "
        f"top-p {config.eval.top_p:g}): {config.actor.model_name_or_path}",
        file=sys.stdout,
    )
    return 0
