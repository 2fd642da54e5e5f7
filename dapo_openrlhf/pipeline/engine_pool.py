"""The pool of engines (rollout workers): the least loaded gets the next group, a dead one is replaced (asyncio).

Faults of a prompt are not counted against an engine: errors of the request pass through, and a prompt on which engines
repeatedly fail or die is detected and dropped, see :mod:`~dapo_openrlhf.pipeline.suspects`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from dapo_openrlhf.pipeline.events import EngineLost, EngineReplaced, Event
from dapo_openrlhf.pipeline.ports import (
    CUT_TOO_EARLY,
    ENGINE_DIED,
    EngineReviver,
    GenerationEngine,
    GroupError,
    NotRevived,
    Sampling,
)
from dapo_openrlhf.pipeline.suspects import FAILURES, Suspects, Suspicion
from dapo_openrlhf.types import Generation, Prompt

SICK = 8
"""Number of groups that fail on one engine, with none done in between, after which it counts as dead; each prompt
counts at most ``suspects.FAILURES`` times."""


class EngineUnusable(RuntimeError):
    """An engine died more often than is allowed; the message names it and its last error."""


@dataclass(slots=True)
class _Seat:
    """One engine's place in the pool."""

    engine: GenerationEngine
    load: int = 0
    up: bool = True
    failures: Counter[Prompt] = field(default_factory=Counter)
    """How many groups of each prompt failed since a group was done."""
    done: int = 0
    replaced: int = 0
    proven: bool = False
    """Whether a group was done since the engine was started."""

    @property
    def sick(self) -> bool:
        """Whether the engine counts as dead, because it only fails, and not just on a few prompts."""
        return sum(min(times, FAILURES) for times in self.failures.values()) >= SICK


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    name: str
    prompt: Prompt
    sampling: Sampling
    timeout: float

    def probe(self, prompt: Prompt, name: str) -> _Request:
        """A request for one token of a prompt."""
        return replace(self, name=f"{self.name}, {name}", prompt=prompt, sampling=self.sampling.probe())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
    engine: int
    cause: str
    own_fault: bool
    """Whether the death counts as one of the engine's restarts."""


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
        """``max_restarts``: how often each engine may be replaced for reasons other than a prompt."""
        self._seats = [_Seat(engine) for engine in engines]
        self._reviver = reviver
        self._max_restarts = max_restarts
        self._on_event = on_event
        self._changed = asyncio.Event()
        self._dead: asyncio.Queue[_Death] = asyncio.Queue()
        self._requests: dict[str, int] = {}  # in flight, by the engine that has it
        self._suspects = Suspects()
        self._one_suspect = asyncio.Lock()
        self._suspects_waiting = 0
        self._reserved: int | None = None  # the engine that is kept free for suspects
        self._last_done: Prompt | None = None

    def least_loaded(self) -> int | None:
        """Index of the engine with the fewest groups, the first of several; None while no engine can take one."""
        free = [index for index, seat in enumerate(self._seats) if seat.up and index != self._reserved]
        return min(free, key=lambda index: self._seats[index].load, default=None)

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling, timeout: float) -> Generation:
        """Generate a group within ``timeout`` seconds, once an engine is up. Raises :class:`GroupError`."""
        group = _Request(name=request, prompt=prompt, sampling=sampling, timeout=timeout)
        suspicion = self._suspects.suspicion(prompt)
        if self._reviver is not None and suspicion is not Suspicion.NONE:
            async with self._engine_alone() as index:
                await self._prove(index, group)
                if suspicion is Suspicion.TRIAL:
                    return self._done(prompt, await self._run(index, group, alone=True))
                await self._run(index, group.probe(prompt, "probe"), alone=True)
        while (free := self.least_loaded()) is None:
            await self._change()
        return self._done(prompt, await self._run(free, group))

    def cut(self, request: str) -> None:
        """End a group's generation with the tokens so far; nothing happens when it is not in an engine."""
        if (index := self._requests.get(request)) is not None:
            self._seats[index].engine.cut(request)

    async def supervise(self) -> None:
        """Replace dead engines until cancelled. Raises :class:`EngineUnusable`."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._replace(await self._dead.get()))

    async def _run(self, index: int, group: _Request, *, alone: bool = False) -> Generation:
        """Generate a group. ``alone``: nothing else is in the engine, which is proven first where possible."""
        seat = self._seats[index]
        seat.load += 1
        done = seat.done
        self._requests[group.name] = index
        try:
            async with asyncio.timeout(group.timeout):
                generation = await seat.engine.generate(group.name, group.prompt, group.sampling)
        except TimeoutError:
            error = GroupError(
                "generate_timeout", f"engine {index} did not finish {group.prompt.name} within {group.timeout:g} s"
            )
            self._failed(index, group.prompt, error, died=seat.done == done, alone=alone)  # hangs: did nothing else
            raise error from None
        except GroupError as error:
            if not error.permanent and error.reason != CUT_TOO_EARLY:
                self._failed(index, group.prompt, error, died=error.reason == ENGINE_DIED, alone=alone)
            raise
        finally:
            seat.load -= 1
            del self._requests[group.name]
            self._changed.set()
        seat.failures.clear()
        seat.done += 1
        seat.proven = True
        self._last_done = group.prompt
        return generation

    def _done(self, prompt: Prompt, generation: Generation) -> Generation:
        self._suspects.done(prompt)
        return generation

    def _failed(self, index: int, prompt: Prompt, error: GroupError, *, died: bool, alone: bool) -> None:
        """Count a failure against engine and prompt, as far as either can be at fault. Raises ``PromptFault``."""
        seat = self._seats[index]
        seat.failures[prompt] += 1
        convicted = died and alone and seat.proven
        if self._reviver is not None and seat.up and (died or seat.sick):
            seat.up = False
            self._dead.put_nowait(_Death(engine=index, cause=str(error), own_fault=not convicted))
        if convicted:
            engines, fault = self._suspects.killed(prompt, error)
            for engine in engines:
                self._seats[engine].replaced = max(0, self._seats[engine].replaced - 1)
            raise fault
        if died:
            self._suspects.died(prompt, index)
        else:
            self._suspects.failed(prompt, (index, seat.replaced, seat.done), error)

    @asynccontextmanager
    async def _engine_alone(self) -> AsyncIterator[int]:
        """Reserve an engine with nothing in it, one at a time; the other engines go on."""
        self._suspects_waiting += 1
        try:
            async with self._one_suspect:
                while (index := self._emptiest()) is None or self._seats[index].load > 0:
                    self._reserved = index
                    await self._change()
                self._reserved = index
                yield index
        finally:
            self._suspects_waiting -= 1
            if not self._suspects_waiting:
                self._reserved = None
                self._changed.set()

    def _emptiest(self) -> int | None:
        """The engine that is up with the fewest groups; the one that is kept free already, unless another is empty."""
        up = [index for index, seat in enumerate(self._seats) if seat.up]
        return min(up, key=lambda index: (self._seats[index].load > 0, index != self._reserved), default=None)

    async def _prove(self, index: int, group: _Request) -> None:
        """Show that a new engine works at all, with a prompt that was done before, where there is one."""
        if not self._seats[index].proven and self._last_done not in (None, group.prompt):
            await self._run(index, group.probe(self._last_done, "control"))

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _replace(self, death: _Death) -> None:
        assert self._reviver is not None
        index, cause, counts = death.engine, death.cause, death.own_fault
        seat = self._seats[index]
        while not seat.up:
            self._on_event(EngineLost(engine=index, message=cause))
            if counts and seat.replaced >= self._max_restarts:
                raise EngineUnusable(
                    f"engine {index} failed after {seat.replaced} replacements (vllm.max_restarts): {cause}. Look at its "
                    "log in Ray's session folder; the run can be continued from its last checkpoint with --resume"
                    + self._suspects.words()
                )
            seat.replaced += counts
            try:
                await self._reviver.revive(index)
                seat.up, seat.proven = True, False
                seat.failures.clear()
            except NotRevived as error:
                cause, counts = str(error), True
        self._on_event(EngineReplaced(engine=index, times=seat.replaced))
        self._changed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A pool of engines with fixed sampling settings and a fixed time limit per group."""

    engines: EnginePool
    sampling: Sampling
    timeout: float
    """Time limit of a group in seconds, see :meth:`EnginePool.generate`."""

    async def sample(self, request: str, prompt: Prompt) -> Generation:
        """Generate a group; ``request`` is a unique name. Raises :class:`GroupError`."""
        return await self.engines.generate(request, prompt, self.sampling, self.timeout)
