"""Shared memory, through which responses and weights travel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from dapo_openrlhf.backend.run.needs import object_store_bytes
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject

SHARED = Path("/dev/shm")
LEAST = 64 << 20


def check(subject: Subject) -> Iterator[Finding]:
    """Fail without any; warn where a run's groups and weights do not fit, and Ray would use files."""
    if not subject.machines().here:
        yield passed("that of the machines is looked at where the run runs")
        return
    if not SHARED.is_dir() or not os.access(SHARED, os.W_OK):
        yield failed(f"{SHARED} cannot be written", "mount it (docker: --shm-size 8g)")
        return
    free = shutil.disk_usage(SHARED).free
    wanted = object_store_bytes(subject.config, psutil.virtual_memory().total)
    words = f"{SHARED} has {free / 1e9:,.1f} GB free, and groups and weights take at most {wanted / 1e9:,.1f} GB"
    remedy = "remove what others left there, or make it larger (docker: --shm-size 8g)"
    if free < LEAST:
        yield failed(words, remedy)
    elif free < wanted:
        yield warned(f"{words}; Ray puts the rest into files, which are slower", remedy)
    else:
        yield passed(words)
