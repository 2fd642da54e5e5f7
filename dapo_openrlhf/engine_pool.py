"""The generation engines as one: the least loaded gets the next group, a dead one is replaced (layer 2: asyncio)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dapo_openrlhf.events import EngineLost, EngineReplaced, Event
from dapo_openrlhf.ports import (
    CUT_TOO_EARLY,
    ENGINE_DIED,
    EngineReviver,
    GenerationEngine,
    GroupError,
    NotRevived,
    Sampling,
)
from dapo_openrlhf.types import Generation, Prompt

SICK = 8
"""Groups that fail on one engine, with none done in between, after which it counts as dead."""


class EngineUnusable(RuntimeError):
    """An engine died more often than is allowed; the message names it and its last error."""


@dataclass(slots=True)
class _Seat:
    """One engine's place in the pool."""

    engine: GenerationEngine
    load: int = 0
    up: bool = True
    failures: int = 0
    """Groups failed since one was done."""
    done: int = 0
    replaced: int = 0


class EnginePool:
    """Chooses an engine for each group and knows which engines are up.

    Without a ``reviver`` every engine counts as up. With one, :meth:`supervise` must run beside the users of the pool.
    """

    def __init__(
        self,
        engines: Sequence[GenerationEngine],
        *,
        reviver: EngineReviver | None = None,
        max_restarts: int = 0,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """``max_restarts``: how often each engine may be replaced."""
        self._seats = [_Seat(engine) for engine in engines]
        self._reviver = reviver
        self._max_restarts = max_restarts
        self._on_event = on_event
        self._came_up = asyncio.Event()
        self._dead: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self._requests: dict[str, int] = {}  # in flight, by the engine that has it

    def least_loaded(self) -> int | None:
        """Index of the engine with the fewest groups, the first of several; None while none is up."""
        up = [index for index, seat in enumerate(self._seats) if seat.up]
        return min(up, key=lambda index: self._seats[index].load, default=None)

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling, timeout: float) -> Generation:
        """Generate a group within ``timeout`` seconds, once an engine is up. Raises :class:`GroupError`."""
        while (index := self.least_loaded()) is None:
            self._came_up.clear()
            await self._came_up.wait()
        seat = self._seats[index]
        seat.load += 1
        done = seat.done
        self._requests[request] = index
        try:
            async with asyncio.timeout(timeout):
                generation = await seat.engine.generate(request, prompt, sampling)
        except TimeoutError:
            message = f"engine {index} did not finish prompt {prompt.id} within {timeout:g} s"
            self._failed(index, message, died=seat.done == done)  # it hangs: nothing else was done either
            raise GroupError("generate_timeout", message) from None
        except GroupError as error:
            if not error.permanent and error.reason != CUT_TOO_EARLY:
                self._failed(index, str(error), died=error.reason == ENGINE_DIED)
            raise
        finally:
            seat.load -= 1
            del self._requests[request]
        seat.failures = 0
        seat.done += 1
        return generation

    def cut(self, request: str) -> None:
        """End a group's generation with what there is; nothing happens when it is not in an engine."""
        if (index := self._requests.get(request)) is not None:
            self._seats[index].engine.cut(request)

    async def supervise(self) -> None:
        """Replace dead engines, until cancelled. Raises :class:`EngineUnusable`."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                index, cause = await self._dead.get()
                tasks.create_task(self._replace(index, cause))

    def _failed(self, index: int, cause: str, *, died: bool) -> None:
        seat = self._seats[index]
        seat.failures += 1
        if self._reviver is not None and seat.up and (died or seat.failures >= SICK):
            seat.up = False
            self._dead.put_nowait((index, cause))

    async def _replace(self, index: int, cause: str) -> None:
        assert self._reviver is not None
        seat = self._seats[index]
        while not seat.up:
            self._on_event(EngineLost(engine=index, message=cause))
            if seat.replaced == self._max_restarts:
                raise EngineUnusable(
                    f"engine {index} failed after {seat.replaced} replacements (vllm.max_restarts): {cause}. Look at its "
                    "log in Ray's session folder; the run can be continued from its last checkpoint with --resume"
                )
            seat.replaced += 1
            try:
                await self._reviver.revive(index)
                seat.up, seat.failures = True, 0
            except NotRevived as error:
                cause = str(error)
        self._on_event(EngineReplaced(engine=index, times=seat.replaced))
        self._came_up.set()
