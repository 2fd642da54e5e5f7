"""How often a process that is lost is replaced: what happened within the last hour counts (standard library)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

WINDOW_SECONDS = 3600.0
"""Period over which restarts are counted."""


@dataclass(slots=True)
class RestartBudget:
    """The ends of engines' lives that count as their restarts, for all lives of a run together.

    Times are seconds on a clock that never goes back. An end is known by the number of the engine's life, so that it counts
    once however often it is reported.
    """

    most: int = 0
    """How often each engine may be replaced within the period."""
    _ends: defaultdict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def charge(self, engine: int, life: int, now: float) -> None:
        """Count the end of a life."""
        self._ends[engine].setdefault(life, now)

    def refund(self, engine: int, life: int) -> None:
        """Count the end of a life no longer."""
        self._ends[engine].pop(life, None)

    def count(self, engine: int, now: float) -> int:
        """Number of ends of the engine's lives within the period; the older ones are forgotten."""
        ends = self._ends[engine]
        self._ends[engine] = {life: time for life, time in ends.items() if now - time < WINDOW_SECONDS}
        return len(self._ends[engine])

    def seconds_left(self, engine: int, now: float) -> float:
        """Seconds until the engine may be replaced; 0 if it may be now."""
        times = sorted(self._ends[engine].values(), reverse=True)
        return max(0.0, times[self.most] + WINDOW_SECONDS - now) if len(times) > self.most else 0.0
