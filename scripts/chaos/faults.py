"""Finds the process that a fault is for, and puts the fault into it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from scripts.chaos.rows import Fault, Phase

ENGINE, RANK = "ray::EngineActor", "ray::PolicyActor"
"""How the command lines of engines and trainer ranks begin."""

VICTIMS: Mapping[Fault, tuple[str, signal.Signals]] = {
    "engine_killed": (ENGINE, signal.SIGKILL),
    "engine_stopped": (ENGINE, signal.SIGSTOP),
    "reward_killed": ("dapo_openrlhf.rewards.child", signal.SIGKILL),
    "rank_killed": (RANK, signal.SIGKILL),
}
"""For a fault of one process of the run, what its command line contains, and the signal that it gets."""

HOLDERS: Mapping[Phase, tuple[str, Phase]] = {
    "generating": ("", "generating"),
    "training": (RANK, "training"),
    "publishing": (ENGINE, "training"),
    "saving": (RANK, "saving"),
}
"""For a phase, the process that is stopped for a moment so that the phase lasts, and the phase in which it is: an engine
that is stopped while the trainer trains cannot load what is published next."""


def hold(words: str, run: psutil.Process) -> psutil.Process | None:
    """Stop a process of the run; none is stopped for no words."""
    if not words:
        return None
    holder = _find(words, run)
    holder.suspend()
    return holder


def release(held: psutil.Process | None) -> None:
    """Let a process go on, if one is held and the fault has left it."""
    if held is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            held.resume()


def strike(fault: Fault, run: psutil.Process) -> None:
    """Put a fault into a run whose process is ``run``. Raises ``LookupError`` if it has no such process."""
    if fault not in VICTIMS:
        run.send_signal(signal.SIGTERM)
        return
    words, number = VICTIMS[fault]
    _find(words, run).send_signal(number)


def _find(words: str, run: psutil.Process) -> psutil.Process:
    """The oldest process of the run whose command line contains the words."""
    found = [process for process in run.children(recursive=True) if words in _command(process)]
    if not found:
        raise LookupError(f"the run has no process {words}")
    return min(found, key=lambda process: process.pid)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""


def damage(checkpoints: Path) -> str:
    """Take half of the largest file from the newest checkpoint; returns what was done."""
    newest = max(checkpoints.glob("step-*"))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    return f"half of {largest.relative_to(checkpoints)} is gone"
