"""Which episode computes in a process: a number in memory that the process shares with its owner (standard library only).

A process whose event loop is blocked can answer nothing, so its owner reads there which episode blocks it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Coroutine, Generator
from types import CodeType, CoroutineType, FrameType
from typing import Any, Self

NOBODY = 0
"""The number while no episode computes; episodes have numbers from 1."""


class Running:
    """The number of the episode that computes now."""

    def __init__(self, handle: int) -> None:
        """Map the memory behind an open file that both processes have."""
        self.handle = handle
        self._memory = mmap.mmap(handle, mmap.PAGESIZE)
        self._numbers = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """New memory; a child inherits ``handle``."""
        handle = os.memfd_create("running")
        os.ftruncate(handle, mmap.PAGESIZE)
        return cls(handle)

    @property
    def episode(self) -> int:
        """The episode's number, or :data:`NOBODY`."""
        return self._numbers[0]

    @episode.setter
    def episode(self, number: int) -> None:
        self._numbers[0] = number

    def close(self) -> None:
        """Give the memory back."""
        self._numbers.release()
        self._memory.close()
        os.close(self.handle)


class Traced(Coroutine[Any, Any, Any]):
    """A coroutine that says when it computes. ``inspect`` and libraries for tasks see it as the one inside."""

    def __init__(self, inside: CoroutineType[Any, Any, Any], running: Running, episode: int) -> None:
        self._inside, self._running, self._episode = inside, running, episode

    def send(self, value: Any) -> Any:
        """Go on computing."""
        self._running.episode = self._episode
        try:
            return self._inside.send(value)
        finally:
            self._running.episode = NOBODY

    def throw(self, *error: Any) -> Any:
        """Go on computing with an exception."""
        self._running.episode = self._episode
        try:
            return self._inside.throw(*error)
        finally:
            self._running.episode = NOBODY

    def close(self) -> None:
        """End the coroutine."""
        self._inside.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inside.__await__()

    @property
    def cr_running(self) -> bool:
        """The same as that of the coroutine inside, as are the following."""
        return self._inside.cr_running

    @property
    def cr_suspended(self) -> bool:
        """Whether it waits."""
        return self._inside.cr_suspended

    @property
    def cr_frame(self) -> FrameType | None:
        """Its frame."""
        return self._inside.cr_frame

    @property
    def cr_code(self) -> CodeType:
        """Its code."""
        return self._inside.cr_code

    @property
    def cr_await(self) -> Any:
        """What it waits for."""
        return self._inside.cr_await
