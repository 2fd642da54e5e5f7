"""The command ``dapo-openrlhf checkpoint RUN``: lists a run's checkpoints and verifies their files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, damage
from dapo_openrlhf.pipeline.manifest import size


def checkpoint(options: argparse.Namespace) -> int:
    """List and verify the checkpoints; returns the exit status, 1 if any is damaged."""
    run: Path = options.run
    found = Checkpoints(run / "checkpoints", max_num=1).finished()
    if not found:
        raise ConfigError(f"{run}: there is no checkpoint in it; ckpt.save_steps makes some")
    damaged = [wrong for path in found if (wrong := _show(path))]
    return 1 if damaged else 0


def _show(path: Path) -> list[str]:
    wrong = damage(path)
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
    print(f"{path}  {size(path) / 1e6:10,.1f} MB  {written}  {'damaged' if wrong else 'good'}", flush=True)
    for line in wrong:
        print(f"    {line}", flush=True)
    return wrong
