"""Collects what rewards print from a pipe, and keeps its first and last lines (standard library only)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable

FIRST_LINES = LAST_LINES = 10
"""How many lines are kept from the beginning and from the end of what is printed; those between are only counted."""
LONGEST_LINE = 500
CHUNK = 1 << 16
MOST_CHUNKS = 64
"""Most chunks read at once when a response has been scored, so that endless printing does not hold up its reader."""


class Printed:
    """The reading end of a pipe for the standard output and error of one reward process after another."""

    def __init__(self) -> None:
        self.reader = self.writer = -1
        self.open_ended = False
        """Whether the process may still print something."""
        self._rest = b""
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._count = 0

    def open(self) -> None:
        """Make a pipe for a new process, which is to write to ``writer``; lines that were not taken are kept."""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.open_ended = True

    def close_writer(self) -> None:
        """Close this process's copy of the writing end, once the new process has its own."""
        os.close(self.writer)

    def read(self) -> None:
        """Read what is available, up to a limit."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_CHUNKS):
                chunk = os.read(self.reader, CHUNK)
                if not chunk:
                    self.open_ended = False
                    return
                self._split(chunk)

    def _split(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        if len(rest) > CHUNK:  # a line without an end
            lines, rest = [*lines, rest], b""
        self._rest = rest
        lines = [line for line in lines if line.strip()]
        room = FIRST_LINES - len(self._first)
        self._first += map(_printable, lines[:room])
        self._last += map(_printable, lines[room:][-LAST_LINES:])
        self._count += len(lines)

    def note(self, line: str) -> None:
        """Add a line of one's own."""
        self._split(b"\n" * bool(self._rest) + line.encode() + b"\n")

    def take(self) -> list[str]:
        """Return the lines since the last call; one in the middle may say how many there were in its place."""
        first, last = self._first, [*self._last]
        left_out = self._count - len(first) - len(last)
        self._first, self._count = [], 0
        self._last.clear()
        return [*first, *([f"... {left_out} lines left out ..."] if left_out else []), *last]

    def close(self) -> None:
        """Close the reading end; an incomplete last line counts as a line."""
        if self._rest.strip():
            self._split(b"\n")
        os.close(self.reader)
        self.open_ended = False


class Limited:
    """Passes lines on with a prefix, at most ``most`` in ``seconds``; the number left out is reported later."""

    def __init__(
        self,
        say: Callable[[str], None],
        clock: Callable[[], float],
        *,
        prefix: str = "reward: ",
        most: int = 20,
        seconds: float = 30.0,
    ) -> None:
        self._say, self._clock, self._prefix, self._most, self._seconds = say, clock, prefix, most, seconds
        self._since = clock()
        self._said = self._left_out = 0

    def __call__(self, line: str) -> None:
        """Pass on one line, or count it as left out."""
        if self._clock() - self._since >= self._seconds:
            if self._left_out:
                self._say(f"{self._prefix}... {self._left_out} more lines were left out")
            self._since = self._clock()
            self._said = self._left_out = 0
        if self._said >= self._most:
            self._left_out += 1
            return
        self._said += 1
        self._say(self._prefix + line)


def flush_output() -> None:
    """Flush what this process has printed, as it belongs to an answer; a user's code may have closed or replaced it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _printable(line: bytes) -> str:
    text = line[:LONGEST_LINE].decode("utf-8", "backslashreplace").rstrip()
    return "".join(sign if sign.isprintable() or sign == "\t" else ascii(sign)[1:-1] for sign in text)
