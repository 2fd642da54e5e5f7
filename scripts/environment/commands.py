"""Commands with their output in the log, and what of it a user is shown when one fails."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from environment.place import Place, SetupError

LINES_SHOWN = 20
WARNINGS_SHOWN = 4
HEARTBEAT_SECONDS = 60.0

IS_WARNING = re.compile(r"\s*WARNING:")
PASSING = re.compile(r"0x[0-9a-f]+|\d+|'/[^']*'|/simple/\S*")
"""What differs between two tellings of the same trouble: addresses of objects, counts, the package that was asked for."""


@dataclass
class Commands:
    """Runs commands for one environment."""

    place: Place
    held_locks: list[int] = field(default_factory=list)
    """File descriptors each command inherits: should this process be killed, the next set-up waits for the command."""

    def run(self, command: Sequence[str | Path], *, env: dict[str, str] | None = None, check: bool = True) -> None:
        """Run a command with its output in the log. Raises ``SetupError`` with the end of it when it fails."""
        with self.place.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n")
            log.flush()
            begin = log.tell()
            result = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | (env or {}),
                pass_fds=self.held_locks,
                check=False,
            )
        if result.returncode < 0 or (check and result.returncode):
            with self.place.log.open("rb") as log:
                log.seek(begin)
                output = log.read().decode(errors="replace")
            raise SetupError(
                f"{explain(output)}\nThe whole output is in {self.place.log.relative_to(self.place.root)}."
            )

    def pip_install(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Let the environment's pip install something."""
        options = ("--no-compile", "--no-input", "--progress-bar=off", "--disable-pip-version-check")
        self.run((self.place.python, "-m", "pip", "install", *options, *arguments), env=env)


def explain(output: str) -> str:
    """The end of a command's output, and before it each kind of warning once: pip says there why an index failed."""
    lines = [line for line in output.splitlines() if line.strip()]
    warnings: dict[str, str] = {}
    for line in lines:
        if IS_WARNING.match(line):
            warnings.setdefault(PASSING.sub("", line), line)
    others = [line for line in lines if not IS_WARNING.match(line)]
    return "\n".join([*list(warnings.values())[-WARNINGS_SHOWN:], *others[-LINES_SHOWN:]])


@contextmanager
def heartbeat(what: str) -> Iterator[None]:
    """Say once a minute that something long goes on."""
    over, started = threading.Event(), time.monotonic()

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            print(f"\n    {what}: {(time.monotonic() - started) / 60:.0f} min ... ", end="", flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
