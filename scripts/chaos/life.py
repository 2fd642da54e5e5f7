"""One process of a run: started, followed, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

LATEST = 900.0
"""Seconds after which a run that has not come to its phase, or to its end, is ended: it hangs."""


class Life:
    """One process of a run, with a process group of its own; what it says is in a file."""

    def __init__(self, folder: Path, said: Path, *arguments: str) -> None:
        self.said = said
        self.started = time.time()
        with said.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dapo_openrlhf", "train", "--config", str(folder / "config.yaml"), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.process = psutil.Process(self._process.pid)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def family(self) -> list[psutil.Process]:
        """The run's process, which has not ended, and all that it has started."""
        return [self.process, *self.process.children(recursive=True)]

    def end(self, family: Sequence[psutil.Process]) -> tuple[int, list[str]]:
        """Wait for its end; returns the exit code and what it has left over, which is ended."""
        try:
            code = self._process.wait(LATEST)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        left = [f"process {process.pid} ({process.name()}) was left over" for process in alive]
        for process in alive:
            process.kill()
        return code, left

    def kill(self) -> None:
        """End it, and all that it has started, at once."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def last_words(self) -> str:
        """The last line that it has printed."""
        lines = [line for line in self.said.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
