"""Requests from outside to end a run soon while keeping what it has learned, or to save it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import Any, TypeVar

Result = TypeVar("Result")


class StopAsked(Exception):
    """The run was asked to end while it waited for something."""


class GraceOver(Exception):
    """The run was asked to end, and the work to be finished took longer than the grace period."""


class StopRequest:
    """Asks a run to end: after one request it keeps what it has and ends within ``grace`` seconds, after two at once.

    The run can also be asked to save and go on. All methods must be called in one event loop.
    """

    def __init__(self, *, grace: float) -> None:
        """``grace``: seconds between the first request and the end."""
        self._grace = grace
        self._deadline: float | None = None
        self._asked = asyncio.Event()
        self._timed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._save = asyncio.Event()

    def ask(self) -> None:
        """Ask the run to end; the second call asks it to end at once."""
        if self._timed.is_set():
            self._hurry.set()
        else:
            self._deadline = asyncio.get_running_loop().time() + self._grace
            self._timed.set()
            self._asked.set()

    def ask_without_deadline(self) -> None:
        """Ask the run to end because it cannot go on; nobody waits for that, so it has all the time that it needs."""
        self._asked.set()

    def ask_to_save(self) -> None:
        """Ask for a checkpoint at the next opportunity, after which the run goes on."""
        self._save.set()

    @property
    def save_wanted(self) -> bool:
        """Whether a checkpoint was asked for and has not been made yet."""
        return self._save.is_set()

    def saved(self) -> None:
        """Take note that the requested checkpoint is made, or that there is nothing to save."""
        self._save.clear()

    async def save_wanted_before(self, task: asyncio.Future[Result]) -> bool:
        """Wait for the task or for a checkpoint to be wanted; returns whether one is wanted.

        When this is cancelled, so is the task.
        """
        await _first(task, self._save)
        return self.save_wanted

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise :class:`StopAsked` if the run is to end."""
        if self.asked:
            raise StopAsked

    async def unless_asked(self, work: Awaitable[Result]) -> Result:
        """Return the result of work that may be left undone; raises :class:`StopAsked` as soon as the run is to end."""
        task = asyncio.ensure_future(work)
        await _first(task, self._asked)
        if not task.done():
            await _cancelled(task)
            raise StopAsked
        return task.result()

    async def within_grace(self, work: Awaitable[Result]) -> Result:
        """Return the result of work that should be finished; raises :class:`GraceOver` when time is up."""
        task = asyncio.ensure_future(work)
        if self._seconds_left() > 0:
            await _first(task, self._timed)
        if not task.done() and (left := self._seconds_left()) > 0:
            await _first(task, self._hurry, timeout=left)
        if not task.done():
            await _cancelled(task)
            raise GraceOver
        return task.result()

    def _seconds_left(self) -> float:
        if self._deadline is None:
            return math.inf
        return 0.0 if self._hurry.is_set() else self._deadline - asyncio.get_running_loop().time()


async def _first(task: asyncio.Future[Result], event: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until the task is done, the event is set, or ``timeout`` seconds are over.

    When this is cancelled, so is the task.
    """
    waiter = asyncio.create_task(event.wait())
    try:
        waited: list[asyncio.Future[Any]] = [task, waiter]
        await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await _cancelled(task)
        raise
    finally:
        await _cancelled(waiter)


async def _cancelled(task: asyncio.Future[Result]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
