"""Waiting in tests: limits only end what hangs, and clocks go when the test says so."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

HANG_SECONDS = 900
"""A limit on what takes seconds. It is met by what hangs, not by a slow or busy machine."""


class Clock:
    """Seconds that stand still, unless ``passes`` says that a deadline may be over."""

    def __init__(self) -> None:
        self.passes: Callable[[], bool] = lambda: False
        self._now = 0.0

    def __call__(self) -> float:
        if self.passes():
            self._now += 1000.0
        return self._now


@contextlib.contextmanager
def ends(seconds: float = 120.0) -> Iterator[None]:
    """Fail what takes minutes of this process's own processor time, where it takes milliseconds if all is well."""

    def fail(signum: int, frame: object) -> None:
        raise AssertionError(f"not at an end after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
