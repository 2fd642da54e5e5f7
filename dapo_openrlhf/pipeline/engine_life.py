"""One life of an engine, from its start to its end: whatever is reported of it stays with it (asyncio)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dapo_openrlhf.pipeline.ports import ENGINE_DIED, GenerationEngine, GroupError, Sampling
from dapo_openrlhf.pipeline.suspects import FAILURES
from dapo_openrlhf.types import Generation, Prompt

Result = TypeVar("Result")

SICK = 8
"""Number of groups that fail on one engine, with none done in between, after which it counts as dead; each prompt
counts at most ``suspects.FAILURES`` times."""


@dataclass(slots=True, eq=False, kw_only=True)
class EngineLife:
    """What happened in an engine since it was started."""

    engine: GenerationEngine
    number: int
    """Counts the engine's lives, see :attr:`GenerationEngine.life`."""
    load: int = 0
    """Number of groups in the engine."""
    failures: Counter[Prompt] = field(default_factory=Counter)
    """How many groups of each prompt failed since a group was done."""
    done: int = 0
    """Number of groups that were done."""
    cause: str | None = None
    """Why it has ended; None before that."""
    _limits: set[asyncio.Timeout] = field(default_factory=set)

    @classmethod
    def of(cls, engine: GenerationEngine, cause: str | None = None) -> EngineLife:
        """The engine's present life."""
        return cls(engine=engine, number=engine.life, cause=cause)

    @property
    def up(self) -> bool:
        """Whether it lasts."""
        return self.cause is None

    @property
    def sick(self) -> bool:
        """Whether the engine counts as dead, because it only fails, and not just on a few prompts."""
        return sum(min(times, FAILURES) for times in self.failures.values()) >= SICK

    @property
    def proven(self) -> bool:
        """Whether a group was done."""
        return self.done > 0

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling, timeout: float) -> Generation:
        """Generate a group. Raises ``TimeoutError`` after ``timeout`` seconds, and :class:`GroupError`."""
        self.load += 1
        try:
            generation = await self.meanwhile(self.engine.generate(request, prompt, sampling), timeout)
        finally:
            self.load -= 1
        self.failures.clear()
        self.done += 1
        return generation

    async def meanwhile(self, work: Coroutine[Any, Any, Result], timeout: float | None = None) -> Result:
        """Do work of this life, within ``timeout`` seconds; raises ``TimeoutError``.

        When this life ends, the work fails at once with a :class:`GroupError`, whether or not the engine reports it.
        """
        if self.cause is not None:
            work.close()
            raise GroupError(ENGINE_DIED, self.cause)
        try:
            async with asyncio.timeout(timeout) as limit:
                self._limits.add(limit)
                try:
                    return await work
                finally:
                    self._limits.remove(limit)
        except TimeoutError:
            if self.cause is None:
                raise
            raise GroupError(ENGINE_DIED, self.cause) from None

    def end(self, cause: str) -> None:
        """End this life; all of its work fails with ``cause``."""
        self.cause = cause
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(now)
