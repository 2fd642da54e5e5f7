"""How often a process that is lost is replaced: what happened within the last hour counts (standard library)."""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_SECONDS = 3600.0
"""Period over which restarts are counted."""


@dataclass(slots=True)
class RestartBudget:
    """The ends of lives of one engine, or of the trainer, that count as its restarts.

    Times are seconds on a clock that never goes back. An end is known by the number of the life, so that it counts once
    however often it is reported.
    """

    most: int = 0
    """How often it may be replaced within the period."""
    _ends: dict[int, float] = field(default_factory=dict)

    def charge(self, life: int, now: float) -> int:
        """Count the end of a life; returns the number of ends within the period."""
        self._ends.setdefault(life, now)
        return self.count(now)

    def refund(self, life: int) -> None:
        """Count the end of a life no longer."""
        self._ends.pop(life, None)

    def count(self, now: float) -> int:
        """Number of ends within the period; the older ones are forgotten."""
        self._ends = {life: time for life, time in self._ends.items() if now - time < WINDOW_SECONDS}
        return len(self._ends)

    def seconds_left(self, now: float) -> float:
        """Seconds until it may be replaced; 0 if it may be now."""
        times = sorted(self._ends.values(), reverse=True)
        return max(0.0, times[self.most] + WINDOW_SECONDS - now) if len(times) > self.most else 0.0
