"""Runs a command with a time limit and its output in a file, and ends it together with all its descendants."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


def run_tree(command: Sequence[str], environment: Mapping[str, str], log: Path, timeout: float) -> int:
    """Run a command with all its output in ``log``; returns its exit status.

    Raises ``subprocess.TimeoutExpired`` after ``timeout`` seconds. When it is late or interrupted, its whole tree is
    killed.
    """
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            return process.wait(timeout)
        finally:
            _end_tree(process)


def last_lines(log: Path, count: int) -> str:
    """The last lines of a log as text; empty where there is no log."""
    if not log.exists():
        return ""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=count))


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, if it still runs, with all its descendants."""
    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    tree = [*root.children(recursive=True), root]
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=10)
