"""A stopwatch with laps (standard library only)."""

from __future__ import annotations

from collections.abc import Callable


class Laps:
    """A stopwatch that runs all the time, so that every moment belongs to exactly one lap."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> float:
        """Credit the time since the last call to ``name``; returns it, in seconds."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        self._laps[name] = self._laps.get(name, 0.0) + seconds
        return seconds

    def take(self) -> dict[str, float]:
        """Return the laps since the last call, and start over."""
        laps, self._laps = self._laps, {}
        return laps
