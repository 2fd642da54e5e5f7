"""An asyncio event loop in virtual time: sleeping costs nothing, and a deadlock is an error and not a hang.

The clock stands still while anything is runnable and jumps to the next timer when nothing is. With nothing
runnable and no timer, the program can never go on: :class:`Deadlock` says which tasks wait, and where. One
that keeps itself busy without end, with the clock moving or not, is stopped with :class:`Endless`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

MOST_ROUNDS = 200_000


class Deadlock(AssertionError):
    """Nothing is runnable and nothing is scheduled."""


class Endless(AssertionError):
    """The event loop has turned more often than any test needs."""


class _Clock(selectors.SelectSelector):
    """A selector that, instead of waiting for the outside world, moves the loop's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """``timeout``: seconds to the next timer, 0 with something runnable, None with neither."""
        if timeout is None:
            raise Deadlock(f"at {self.now:g} s nothing is runnable and nothing is scheduled; {_who_waits()}")
        self.rounds += 1
        if self.rounds > MOST_ROUNDS:
            self.rounds = 0  # the tasks still have to be cancelled
            raise Endless(f"at {self.now:g} s after {MOST_ROUNDS} rounds of the event loop; {_who_waits()}")
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop; ``time()`` starts at 0."""

    def __init__(self) -> None:
        self._virtual_clock = _Clock()
        super().__init__(self._virtual_clock)

    def time(self) -> float:
        return self._virtual_clock.now

    def stand_still(self, seconds: float) -> None:
        """As when the process is stopped, or is busy with a single call."""
        self._virtual_clock.now += seconds

    @property
    def rounds(self) -> int:
        """How often the loop has turned."""
        return self._virtual_clock.rounds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def _who_waits() -> str:
    lines = []
    for task in asyncio.all_tasks():
        frames = task.get_stack(limit=1)
        where = f"{frames[0].f_code.co_qualname}, line {frames[0].f_lineno}" if frames else "no frame"
        lines.append(f"{task.get_name()} waits in {where}")
    return "; ".join(sorted(lines)) or "no task is left"
