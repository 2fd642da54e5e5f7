"""Room for the trained model and the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dapo_openrlhf.backend.run.node_look import Look, asked_of
from dapo_openrlhf.check.each_machine import each_machine
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.plan.memory import checkpoint_bytes
from dapo_openrlhf.plan.shape import ModelShape

RECORDS_BYTES = 200e6
"""Of events, metrics and reports."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail where not even one checkpoint fits, or the folder cannot be written; warn where not all that are kept do."""
    config = subject.config
    judge = partial(_judge, subject=subject, shape=subject.shape())
    yield from each_machine(subject, judge, f"{subject.folder} is looked at where the run runs")
    kept = config.ckpt.save_steps >= 0
    if not kept and subject.machines().here and config.train.max_steps > 100:
        yield warned(
            f"ckpt.save_steps -1: a run of {config.train.max_steps} steps that dies begins anew",
            "set ckpt.save_steps",
        )


def _judge(look: Look, *, subject: Subject, shape: ModelShape | None) -> Iterator[Finding]:
    config, place = subject.config, asked_of(subject.config, subject.folder).folder
    if look.folder_trouble:
        if len(subject.looks()) > 1:
            return  # which is told of the machine itself
        yield failed(f"run.dir {subject.folder}: {place} {look.folder_trouble}", "name another folder with run.dir")
        return
    model, checkpoint = checkpoint_bytes(config, shape) if shape else (0.0, 0.0)
    kept = 0 if config.ckpt.save_steps < 0 else config.ckpt.max_num + 1 + (config.ckpt.best_metric_key != "none")
    least = RECORDS_BYTES + model + (checkpoint if kept else 0)
    wanted = RECORDS_BYTES + model + kept * checkpoint
    words = f"{place} has {look.disk_free / 1e9:,.1f} GB free; the trained model takes {model / 1e9:,.2f} GB, " + (
        f"{kept} checkpoints of {checkpoint / 1e9:,.2f} GB" if kept else "and no checkpoint is saved"
    )
    if look.disk_free < least:
        yield failed(words, "free some space there, or name another folder with run.dir")
    elif look.disk_free < wanted:
        yield warned(words, "free some space there, keep fewer (ckpt.max_num), or name another folder with run.dir")
    else:
        yield passed(words)
