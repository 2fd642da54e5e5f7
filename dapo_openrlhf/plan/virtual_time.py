"""An asyncio event loop in virtual time: sleeping takes no time, and a deadlock is an error instead of a hang.

The clock stands still while anything can run, and jumps to the next timer when nothing can. If nothing can run and
there is no timer, the program can never go on: :class:`Deadlock` says which tasks wait, and where. A program that keeps
itself busy without end is stopped with :class:`Endless`.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MOST_ROUNDS = 200_000
"""Turns of the event loop after which a program counts as endless, unless it is given another limit."""

NEVER = 1e11
"""Seconds of virtual time that no program lives to see."""


class Deadlock(AssertionError):
    """Nothing can run and nothing is scheduled."""


class Endless(AssertionError):
    """The event loop has turned more often than the program should need."""


class _Clock(selectors.SelectSelector):
    """A selector that moves the loop's clock instead of waiting for the outside world."""

    def __init__(self, most_rounds: int) -> None:
        super().__init__()
        self.now = 0.0
        self.rounds = 0
        self._most = most_rounds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """``timeout``: seconds to the next timer, 0 if something can run, None if neither."""
        if timeout is None:
            raise Deadlock(f"at {self.now:g} s nothing is runnable and nothing is scheduled; {_who_waits()}")
        self.rounds += 1
        if self.rounds > self._most:
            self.rounds = 0  # the tasks still have to be cancelled
            raise Endless(f"at {self.now:g} s after {self._most} rounds of the event loop; {_who_waits()}")
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop; ``time()`` starts at 0."""

    def __init__(self, most_rounds: int = MOST_ROUNDS) -> None:
        self._virtual_clock = _Clock(most_rounds)
        super().__init__(self._virtual_clock)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_clock.now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in the base class; a timer beyond :data:`NEVER` is not kept, as deadlines that nothing reaches are many."""
        if when >= NEVER:
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    @property
    def rounds(self) -> int:
        """How often the loop has turned."""
        return self._virtual_clock.rounds


def run_virtual(main: Coroutine[Any, Any, T], *, most_rounds: int = MOST_ROUNDS) -> T:
    """``asyncio.run`` in virtual time. Raises :class:`Deadlock` and :class:`Endless`."""
    with asyncio.Runner(loop_factory=functools.partial(VirtualTimeLoop, most_rounds)) as runner:
        return runner.run(main)


def _who_waits() -> str:
    lines = []
    for task in asyncio.all_tasks():
        frames = task.get_stack(limit=1)
        where = f"{frames[0].f_code.co_qualname}, line {frames[0].f_lineno}" if frames else "no frame"
        lines.append(f"{task.get_name()} waits in {where}")
    return "; ".join(sorted(lines)) or "no task is left"
