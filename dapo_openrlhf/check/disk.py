"""Room for the trained model and the checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.plan.memory import checkpoint_bytes

RECORDS_BYTES = 200e6
"""Of events, metrics and reports."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail where not even one checkpoint fits, or the folder cannot be written; warn where not all that are kept do."""
    config, shape = subject.config, subject.shape()
    folder = subject.resume.run if subject.resume else Path(config.run.dir)
    if not subject.machines().here:
        yield passed(f"{folder} is looked at where the run runs")
        return
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield failed(f"run.dir {folder}: {place} cannot be written", "name another folder with run.dir")
        return
    free = shutil.disk_usage(place).free
    model, checkpoint = checkpoint_bytes(config, shape) if shape else (0.0, 0.0)
    kept = 0 if config.ckpt.save_steps < 0 else config.ckpt.max_num + 1 + (config.ckpt.best_metric_key != "none")
    least = RECORDS_BYTES + model + (checkpoint if kept else 0)
    wanted = RECORDS_BYTES + model + kept * checkpoint
    words = f"{place} has {free / 1e9:,.1f} GB free; the trained model takes {model / 1e9:,.2f} GB, " + (
        f"{kept} checkpoints of {checkpoint / 1e9:,.2f} GB" if kept else "and no checkpoint is saved"
    )
    if free < least:
        yield failed(words, "free some space there, or name another folder with run.dir")
    elif free < wanted:
        yield warned(words, "free some space there, keep fewer (ckpt.max_num), or name another folder with run.dir")
    else:
        yield passed(words)
    if not kept and not subject.machines().assumed and config.train.max_steps > 100:
        yield warned(
            f"ckpt.save_steps -1: a run of {config.train.max_steps} steps that dies begins anew",
            "set ckpt.save_steps",
        )
