"""Waits for a reward server that cannot be reached (asyncio)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Shortest and longest pause between two attempts, in seconds; pauses grow to at most half the age of the outage."""


class ServerGone(RuntimeError):
    """The server did not become available again in time."""


class Outage:
    """Whether the server can be reached, shared by all tasks that ask it.

    Of the waiting tasks one asks at a time, with growing pauses; the first answer lets all of them go on.
    """

    def __init__(self, *, timeout: float, say: Callable[[str], None]) -> None:
        """``timeout``: seconds after which the server is given up."""
        self._timeout = timeout
        self._say = say
        self._since: float | None = None
        self._next = 0.0
        self._back = asyncio.Event()
        self.answers = 0
        """Number of requests that were answered."""

    def answered(self) -> None:
        """Take note that a request was answered."""
        self.answers += 1
        if self._since is not None:
            self._say(f"reward server is back after {_now() - self._since:.0f} s")
            self._since = None
            self._back.set()

    async def wait(self, why: str) -> None:
        """Return when it is the caller's turn to ask again. Raises :class:`ServerGone` once the time is up."""
        now = _now()
        if self._since is None:
            self._since = self._next = now
            self._back = asyncio.Event()
            self._say(
                f"warning: reward server unreachable: {why}; waiting up to {self._timeout:g} s (reward.server_timeout)"
            )
        age = now - self._since
        if age >= self._timeout:
            raise ServerGone(f"the reward server has been unreachable for {age:.0f} s (reward.server_timeout): {why}")
        pause = min(max(age / 2, FIRST_PAUSE), LONGEST_PAUSE)
        self._next = max(self._next, now) + pause
        back = self._back
        try:
            async with asyncio.timeout_at(min(self._next, self._since + self._timeout)):
                await back.wait()
        except TimeoutError:
            pass


def _now() -> float:
    return asyncio.get_running_loop().time()
