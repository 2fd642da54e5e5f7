"""Limits of this machine's processes: open files, processes and threads."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject

LEAST_FILES, ENOUGH_FILES = 256, 4096
THREADS_AN_ACTOR = 100
"""Threads of an engine, a trainer rank or a reward worker, roughly."""
RAY_THREADS = 400
"""Threads of Ray's own processes, roughly."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail or warn where Ray or the actors would reach a limit."""
    if not subject.machines().here:
        yield passed("those of the machines are looked at where the run runs")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _number(hard)  # Ray raises the soft limit itself
    if most < LEAST_FILES:
        yield failed(f"at most {most:,.0f} open files", f"ulimit -n {ENOUGH_FILES}")
    elif most < ENOUGH_FILES:
        yield warned(f"at most {most:,.0f} open files", f"ulimit -n {ENOUGH_FILES}")
    config = subject.config
    threads = RAY_THREADS + THREADS_AN_ACTOR * (config.devices + config.reward.num_workers)
    room = min(_number(resource.getrlimit(resource.RLIMIT_NPROC)[0]) if os.getuid() else float("inf"), _of_container())
    if room < threads:
        words = f"at most {room:,.0f} processes and threads, where some {threads:,} are to be expected"
        yield warned(words, "raise ulimit -u, or the container's limit (docker: --pids-limit)")
    shown = "unlimited" if room == float("inf") else f"{room:,.0f}"
    yield passed(f"open files {_number(soft):,.0f} (up to {most:,.0f}), processes and threads {shown}")


def _number(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else float(limit)


def _of_container() -> float:
    """The limit of the control group; infinity where there is none."""
    for file in (Path("/sys/fs/cgroup/pids.max"), Path("/sys/fs/cgroup/pids/pids.max")):
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        return float(text) if text.isdigit() else float("inf")
    return float("inf")
