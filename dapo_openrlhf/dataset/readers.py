"""Runs the processes that render a file's rows, and returns their results in the order of the file."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Self

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset.messages import Bad, Good, Refused
from dapo_openrlhf.dataset.rows import files_of
from dapo_openrlhf.dataset.rules import RowRules

BYTES_A_PROCESS = 1 << 20
"""Bytes of a file for each of which one more process is worth starting; a start takes as long as rendering about two
of them."""

MOST_PROCESSES = 16

BLOCK_TIMEOUT = 600.0
"""Seconds a block of rows may take, the start of its process included."""

LAST_WORDS = 500
"""Most characters shown of what a process wrote before it died."""


def child_environment() -> dict[str, str]:
    """Environment of a process that uses transformers as a library: it imports what this process can, and is quiet."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Readers:
    """The processes for one file; they are ended when its ``with`` block is left."""

    def __init__(self, path: Path, rules: RowRules, *, processes: int | None = None) -> None:
        """``processes``: None chooses the number by the file's size and the cores of this process."""
        self._path = path
        self._rules = rules
        wanted = processes or min(
            len(os.sched_getaffinity(0)), 1 + sum(part.stat().st_size for part in files_of(path)) // BYTES_A_PROCESS
        )
        self._count = min(wanted, MOST_PROCESSES)

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        try:
            for process in range(self._count):
                self._start(process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for connection in self._connections:
            connection.close()
        self._log.close()

    def _start(self, process: int) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(BLOCK_TIMEOUT)
        self._connections.append(ours)
        settings = {
            "path": str(self._path),
            "rules": asdict(self._rules),
            "process": process,
            "processes": self._count,
        }
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dapo_openrlhf.dataset.child", str(theirs.fileno()), json.dumps(settings)],
                    pass_fds=[theirs.fileno()],
                    env=child_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                )
            )

    def blocks(self) -> Iterator[list[Good | Bad]]:
        """Yield results in the file's order. Raises ``ConfigError`` for a file or a tokenizer that cannot be used."""
        files = [connection.makefile("rb") for connection in self._connections]
        turn = 0
        while (block := self._receive(files[turn % self._count], turn)) is not None:
            yield block
            turn += 1

    def _receive(self, file: object, turn: int) -> list[Good | Bad] | None:
        try:
            message: list[Good | Bad] | Refused | None = pickle.load(file)  # type: ignore[arg-type]  # of our own process
        except TimeoutError:
            raise ConfigError(
                f"{self._path}: block {turn} of its rows took over {BLOCK_TIMEOUT:g} s to be rendered and tokenized"
            ) from None
        except (EOFError, ConnectionError, pickle.UnpicklingError):
            raise ConfigError(f"{self._path}: {self._obituary(turn % self._count)}") from None
        if isinstance(message, Refused):
            raise ConfigError(message.words)
        return message

    def _obituary(self, process: int) -> str:
        status = self._processes[process].wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip()[-LAST_WORDS:]
        return f"the process that renders its rows {how}: {words or 'it wrote nothing'}"
