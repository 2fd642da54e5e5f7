"""Limits of the machines' processes: open files, processes and threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dapo_openrlhf.backend.run.node_look import Look
from dapo_openrlhf.check.each_machine import each_machine
from dapo_openrlhf.check.finding import Finding, failed, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.settings import Config

LEAST_FILES, ENOUGH_FILES = 256, 4096
THREADS_AN_ACTOR = 100
"""Threads of an engine, a trainer rank or a reward worker, roughly."""
RAY_THREADS = 400
"""Threads of Ray's own processes, roughly."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail or warn where Ray or the actors would reach a limit."""
    judge = partial(_judge, config=subject.config)
    yield from each_machine(subject, judge, "those of the machines are looked at where the run runs")


def _judge(look: Look, *, config: Config) -> Iterator[Finding]:
    soft, most = look.open_files  # Ray raises the soft limit itself
    if most < LEAST_FILES:
        yield failed(f"at most {most:,.0f} open files", f"ulimit -n {ENOUGH_FILES}")
    elif most < ENOUGH_FILES:
        yield warned(f"at most {most:,.0f} open files", f"ulimit -n {ENOUGH_FILES}")
    threads = RAY_THREADS + THREADS_AN_ACTOR * (config.devices + config.reward.num_workers)
    if look.processes < threads:
        words = f"at most {look.processes:,.0f} processes and threads, where some {threads:,} are to be expected"
        yield warned(words, "raise ulimit -u, or the container's limit (docker: --pids-limit)")
    shown = "unlimited" if look.processes == float("inf") else f"{look.processes:,.0f}"
    yield passed(f"open files {soft:,.0f} (up to {most:,.0f}), processes and threads {shown}")
