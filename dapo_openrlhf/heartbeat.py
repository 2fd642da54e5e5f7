"""Says what a command waits for, and since when, when it has said nothing else for a while (standard library only).

``with waiting_for("Ray"):`` surrounds whatever takes long. A :class:`Heartbeat` says these waits, the oldest first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

TERMINAL_SECONDS = 10.0
"""Longest silence on a terminal."""
LOG_SECONDS = 60.0
"""Longest silence in an output that is no terminal, which somebody keeps."""

MOST_SAID = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    what: Callable[[], str]
    since: float


_waits: list[_Wait] = []
"""What this process waits for, the oldest first."""


@contextmanager
def waiting_for(what: str | Callable[[], str], clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Declare that the block is a wait for ``what``, a noun; a function is asked whenever it is said."""
    wait = _Wait((lambda: what) if isinstance(what, str) else what, clock())
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)


def silence_of(stream: TextIO) -> float:
    """The longest silence in a stream, in seconds."""
    return TERMINAL_SECONDS if stream.isatty() else LOG_SECONDS


def waits_in_words(now: float) -> str:
    """What is waited for at this time of the clock, and since when; empty for nothing."""
    return "; ".join(f"{wait.what()} ({now - wait.since:.0f} s)" for wait in _waits[:MOST_SAID])


class Heartbeat:
    """Passes lines on, and says what is waited for when there was none for ``seconds``."""

    def __init__(
        self, say: Callable[[str], None], *, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._seconds = seconds
        self._clock = clock
        self._heard = clock()

    def say(self, text: str) -> None:
        """Pass on a line."""
        self._heard = self._clock()
        self._say(text)

    def beat(self) -> float:
        """Say what is waited for, if it is time; returns the seconds until it may be time again."""
        now = self._clock()
        left = self._heard + self._seconds - now
        if left > 0:
            return left
        if waits := waits_in_words(now):
            self.say(f"still waiting for {waits}")
        self._heard = now
        return self._seconds

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat in a thread, so that it goes on while the block is in foreign code."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.beat()):
                pass

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
