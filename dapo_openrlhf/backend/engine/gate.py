"""Keeps rollouts with environments apart from new weights where no rollout may have two versions (asyncio)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Rollouts go on side by side; weights wait until all have ended, and rollouts that come meanwhile wait for them."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0  # rollouts
        self._weights = 0  # that wait or are being loaded

    @asynccontextmanager
    async def rollouts(self) -> AsyncIterator[None]:
        """What is inside has one version of the weights."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._weights == 0)
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            await self._tell()

    @asynccontextmanager
    async def weights(self) -> AsyncIterator[None]:
        """What is inside replaces the weights."""
        self._weights += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._inside == 0)
            yield
        finally:
            self._weights -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
