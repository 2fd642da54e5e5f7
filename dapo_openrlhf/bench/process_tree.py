"""Runs a command with a time limit and its output in a file, and ends it together with all its descendants."""

from __future__ import annotations

import ctypes
import math
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from dapo_openrlhf.stopping import kill_all

PR_SET_PDEATHSIG = 1
"""Linux's own number (prctl)."""
ENDING_SECONDS = 40.0
"""Seconds in which a process that was asked to end must do so; a training takes ``train.grace_seconds`` (25)."""

LOOK_SECONDS = 2.0
"""Seconds between two looks whether a command has done enough."""

_prctl = ctypes.CDLL(None).prctl


def run_tree(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    timeout: float | None,
    *,
    enough: Callable[[], bool] | None = None,
) -> int:
    """Run a command with all its output behind that in ``log``; returns its exit status, 0 once it has done ``enough``.

    Raises ``subprocess.TimeoutExpired`` after ``timeout`` seconds. When it is late or interrupted, it is asked to end by
    SIGTERM, as it is when this process is killed; what is left after :data:`ENDING_SECONDS` is killed, with its whole
    tree. Signals to this process's group, such as Ctrl-C, do not reach it.
    """
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            return process.wait(timeout) if enough is None else _wait_for(process, timeout, enough)
        finally:
            _end_tree(process)


def _wait_for(process: subprocess.Popen[bytes], timeout: float | None, enough: Callable[[], bool]) -> int:
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not enough():
        left = deadline - time.monotonic()
        try:
            return process.wait(min(LOOK_SECONDS, max(0.0, left)))
        except subprocess.TimeoutExpired:
            if left <= LOOK_SECONDS:
                raise
    return 0


def last_lines(log: Path, count: int) -> str:
    """The last lines of a log as text; empty where there is no log."""
    if not log.exists():
        return ""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return "".join(deque(lines, maxlen=count))


def _end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it still runs, with all its descendants."""
    if process.poll() is not None:
        return
    root = psutil.Process(process.pid)
    tree = {*root.children(recursive=True), root}
    process.terminate()
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        tree |= {*root.children(recursive=True)}
    kill_all(tree)
    process.wait()
    psutil.wait_procs(tree, timeout=10)
