"""A lock, so that only one process at a time writes to a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError

LOCK_FILE = ".lock"
LOOK_PAUSES = (0.01, 0.1, 0.5)
"""Seconds to wait after each try to lock a run: whoever looks at it, a page about runs say, holds the lock for a moment."""


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Lock a run's folder. The kernel releases the lock when this process ends, however it ends.

    Raises ``ConfigError`` that names the process if another one holds the lock.
    """
    handle = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _locked(handle):
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise ConfigError(
                f"{run}: {owner} is writing this run; stop it first, or start a run of your own with another run.name"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock a file, once those are done that only look at it, as :func:`is_being_written` does."""
    for pause in LOOK_PAUSES:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(pause)
    return False


def is_being_written(run: Path) -> bool:
    """Whether a process on this machine is writing the run."""
    try:
        handle = os.open(run / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
