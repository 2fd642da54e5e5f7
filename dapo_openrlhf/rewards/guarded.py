"""A process that computes what a user has written: below guards, with a socket, and a pipe of what it prints (Linux)."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from dapo_openrlhf.rewards import guard
from dapo_openrlhf.rewards.printed import Printed

END_SECONDS = 10.0
"""Seconds a process that has closed its connection may take to end before it counts as hung."""


class GuardedProcess:
    """One process from its start to its end; it calls ``guard.fork_guarded`` first. Calls block."""

    def __init__(self, module: str, arguments: Sequence[str], printed: Printed, *, handles: Sequence[int] = ()) -> None:
        """Start ``python -m module HANDLE ARGUMENTS``, where HANDLE is its end of the socket.

        ``printed`` receives what it prints; ``handles`` are open files that it inherits.
        """
        self.connection, theirs = socket.socketpair()
        self._mark = secrets.token_hex(8)
        self._printed = printed
        printed.open()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno(), *handles],
                stdin=subprocess.DEVNULL,
                stdout=printed.writer,
                stderr=printed.writer,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), guard.MARK: self._mark},
            )
        printed.close_writer()
        self.pid = self._process.pid
        """Id of the outer guard."""
        self.computing = self.pid
        """Id of the process that computes, which says it itself and the owner sets."""

    def resident(self) -> int:
        """Bytes of memory that the process holds; 0 when it has ended."""
        try:
            with open(f"/proc/{self.computing}/statm") as statm:
                return int(statm.read().split()[1]) * resource.getpagesize()
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def obituary(self) -> str:
        """How the process ended, in words, once its end of the socket is closed."""
        try:
            status = self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    def close(self) -> None:
        """End the process and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)  # a reward may have stopped it
        with contextlib.suppress(OSError):  # also when the time is over
            self.connection.settimeout(END_SECONDS)
            self.connection.shutdown(socket.SHUT_WR)  # which the guards wait for
            while self.connection.recv(65536):
                pass
        self.connection.close()
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        guard.end_marked(self._mark, seconds=END_SECONDS)  # a reward may have killed both guards
        self._printed.read()
        self._printed.close()
