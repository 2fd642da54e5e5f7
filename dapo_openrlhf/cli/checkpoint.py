"""The command ``dapo-openrlhf checkpoint RUN``: lists a run's checkpoints, verifies their files, and names the best."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.pipeline.best import evaluation_of
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, damage
from dapo_openrlhf.pipeline.manifest import size
from dapo_openrlhf.report.run_folder import run_called


def checkpoint(options: argparse.Namespace) -> int:
    """List and verify the checkpoints; returns the exit status, 1 if any is damaged."""
    run = run_called(options.run)
    metric = _best_metric(run)
    checkpoints = Checkpoints(run / "checkpoints", max_num=1, best_metric=metric)
    found, best = checkpoints.finished(), checkpoints.best()
    if not found:
        raise ConfigError(f"{run}: there is no checkpoint in it; ckpt.save_steps makes some")
    damaged = [wrong for path in found if (wrong := _show(path, metric, is_best=path == best))]
    return 1 if damaged else 0


def _show(path: Path, metric: str, *, is_best: bool) -> list[str]:
    wrong = damage(path)
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
    words = [f"{path}  {size(path) / 1e6:10,.1f} MB  {written}  {'damaged' if wrong else 'good'}"]
    if (measured := evaluation_of(path, metric)) is not None:
        words.append(f"{measured[0]} {measured[1]:.1%}")
    if is_best:
        words.append("best")
    print("  ".join(words), flush=True)
    for line in wrong:
        print(f"    {line}", flush=True)
    return wrong


def _best_metric(run: Path) -> str:
    """The metric by which the run knows its best checkpoint; accuracy if its settings cannot be read."""
    try:
        return load_config(run / "config.yaml").ckpt.best_metric_key
    except ConfigError:
        return ""
