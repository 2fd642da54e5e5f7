"""Shared memory, through which responses and weights travel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dapo_openrlhf.backend.run.needs import object_store_bytes
from dapo_openrlhf.backend.run.node_look import SHARED, Look
from dapo_openrlhf.check.each_machine import each_machine
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.settings import Config

LEAST = 64 << 20


def check(subject: Subject) -> Iterator[Finding]:
    """Fail without any; warn where a run's groups and weights do not fit, and Ray would use files."""
    judge = partial(_judge, config=subject.config)
    yield from each_machine(subject, judge, "that of the machines is looked at where the run runs")


def _judge(look: Look, *, config: Config) -> Iterator[Finding]:
    if look.shared_free is None:
        yield failed(f"{SHARED} cannot be written", "mount it (docker: --shm-size 8g)")
        return
    wanted = object_store_bytes(config, look.memory)
    words = f"{SHARED} has {look.shared_free / 1e9:,.1f} GB free, and groups and weights take at most {wanted / 1e9:,.1f} GB"
    remedy = "remove what others left there, or make it larger (docker: --shm-size 8g)"
    if look.shared_free < LEAST:
        yield failed(words, remedy)
    elif look.shared_free < wanted:
        yield warned(f"{words}; Ray puts the rest into files, which are slower", remedy)
    else:
        yield passed(words)
