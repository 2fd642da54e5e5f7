"""Limits how many responses of an evaluation are in progress at once, over all its sets (asyncio)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Room for a number of responses; whoever comes first is let in first."""

    def __init__(self, responses: int) -> None:
        """``responses``: at least 1."""
        self._most = responses
        self._free = asyncio.Semaphore(responses)
        self._door = asyncio.Lock()

    @asynccontextmanager
    async def taken(self, responses: int) -> AsyncIterator[None]:
        """Wait until so many fit in, and hold their place for the block; more than there is room for take all of it."""
        taken = 0
        try:
            async with self._door:  # otherwise two that are half inside wait for each other
                while taken < min(responses, self._most):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()
