"""Decides whether an engine hangs, by asking it every few seconds (asyncio).

A process that is stopped or stuck gives no answer. One whose event loop answers may still have a thread that generates
and does not get on; only a step of generation counts for that, since loading a model, waiting for a publication and
being idle take as long as they take, and have deadlines of their own. Time in which this process itself stood still is
not counted: it may have missed the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dapo_openrlhf.pipeline.events import EngineAnswers, EngineSilent, Event
from dapo_openrlhf.pipeline.ports import EngineGone, GenerationEngine, Health

ASK_SECONDS = 5.0
"""Seconds between an engine's answer and the next question."""

WORD_SECONDS = 10.0
"""Seconds without an answer after which the user is told."""

STEP_WORD_SECONDS = 60.0
"""Seconds in one step of generation after which the user is told; a first step compiles, and a long prefill computes."""

TICK_SECONDS = 1.0
LAG_SECONDS = 0.5
"""A second that takes this process longer by more than ``LAG_SECONDS`` is not counted."""


class Unhealthy(Exception):
    """An engine is dead or hangs; the message says which, and how that shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """When an engine counts as hung."""

    answer: float = 60.0
    """Seconds for an answer."""
    step: float = 600.0
    """Seconds for one step of generation."""
    must_finish_groups: bool = True
    """Whether an engine hangs that finishes no group within the time limit of one. Not so where its groups wait for
    environments: these may be late while the engine has nothing to compute."""


class HealthCheck:
    """Watches over one life of one engine."""

    def __init__(
        self, engine: GenerationEngine, index: int, limits: HealthLimits, on_event: Callable[[Event], None]
    ) -> None:
        self._engine = engine
        self._index = index
        self._limits = limits
        self._on_event = on_event
        self._last = Health(doing="ready", steps_begun=0, steps_ended=0)
        self._in_step = 0.0
        self._word_given = False

    async def watch(self) -> None:
        """Ask again and again, until the engine is dead or hangs. Raises :class:`Unhealthy`."""
        while True:
            between = await self._pause()
            self._take_in(*await self._ask(between))

    async def _pause(self) -> float:
        counted = 0.0
        for _ in range(round(ASK_SECONDS / TICK_SECONDS)):
            counted += await _tick(asyncio.sleep(TICK_SECONDS))
        return counted

    async def _ask(self, counted: float) -> tuple[Health, float]:
        """The answer, and the seconds since the last one, of which ``counted`` were over before the question."""
        waited = 0.0
        question = asyncio.ensure_future(self._engine.health())
        try:
            while not question.done():
                waited += await _tick(asyncio.wait({question}, timeout=TICK_SECONDS))
                if not question.done():
                    self._still_waiting(waited)
            return question.result(), counted + waited
        except EngineGone as error:
            raise Unhealthy(str(error)) from error
        finally:
            question.cancel()

    def _still_waiting(self, waited: float) -> None:
        limit = self._limits.answer
        if waited >= limit:
            raise Unhealthy(
                f"engine {self._index} hangs: its process did not answer within {limit:g} s (vllm.health_timeout); last seen: "
                f"{self._last.doing}"
            )
        if waited >= WORD_SECONDS:
            self._say(f"has not answered for {waited:.0f} s (last seen: {self._last.doing})", limit, "health_timeout")

    def _take_in(self, health: Health, seconds: float) -> None:
        """Judge an answer that came ``seconds`` after the last one."""
        same_step = health.steps_begun > health.steps_ended == self._last.steps_ended
        silent, self._in_step = self._in_step, self._in_step + seconds if same_step else 0.0
        self._last = health
        limit = self._limits.step
        if self._in_step >= limit:
            raise Unhealthy(
                f"engine {self._index} hangs: its process answers, but one step has taken {self._in_step:.0f} s "
                f"(vllm.step_timeout {limit:g}) while {health.doing}"
            )
        if self._in_step >= STEP_WORD_SECONDS:
            self._say(f"has computed one step for {self._in_step:.0f} s while {health.doing}", limit, "step_timeout")
        elif self._word_given:
            self._word_given = False
            self._on_event(EngineAnswers(engine=self._index, seconds=max(silent, seconds)))

    def _say(self, words: str, limit: float, setting: str) -> None:
        if not self._word_given:
            self._word_given = True
            message = f"engine {self._index} {words}; it is replaced after {limit:g} s (vllm.{setting})"
            self._on_event(EngineSilent(engine=self._index, message=message))


async def _tick(second: Awaitable[object]) -> float:
    """Wait for what takes at most a second; returns the seconds that count."""
    clock = asyncio.get_running_loop().time
    started = clock()
    await second
    passed = clock() - started
    return passed if passed < TICK_SECONDS + LAG_SECONDS else 0.0
