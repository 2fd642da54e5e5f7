"""The pool of engines (rollout workers): the least loaded gets the next group, a dead one is replaced (asyncio).

Faults of a prompt are not counted against an engine: errors of the request pass through, and a prompt on which engines
repeatedly fail or die is detected and dropped, see :mod:`~dapo_openrlhf.pipeline.suspects`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from dapo_openrlhf.pipeline.engine_life import EngineLife
from dapo_openrlhf.pipeline.events import EngineGivenUp, EngineLost, EngineReplaced, Event
from dapo_openrlhf.pipeline.health import HealthCheck, HealthLimits, Unhealthy
from dapo_openrlhf.pipeline.ports import (
    CUT_TOO_EARLY,
    ENGINE_DIED,
    EngineReviver,
    EnvironmentFault,
    GenerationEngine,
    GroupError,
    NotRevived,
    Sampling,
)
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.pipeline.reward_attempts import Attempts
from dapo_openrlhf.pipeline.suspects import Suspects, Suspicion
from dapo_openrlhf.types import Generation, Prompt

GENERATE_TIMEOUT = "generate_timeout"
"""Reason of a ``GroupError`` about a group that took longer than its time limit."""


class EngineUnusable(RuntimeError):
    """Every engine died more often than is allowed; the message names the last one and its last error."""


@dataclass(slots=True)
class _Seat:
    """One engine's place in the pool."""

    engine: GenerationEngine
    restarts: RestartBudget
    life: EngineLife = field(init=False)
    given_up: bool = False
    """Whether it was lost too often within an hour to be replaced now."""

    def __post_init__(self) -> None:
        self.life = EngineLife.of(self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    name: str
    prompt: Prompt
    sampling: Sampling
    timeout: float

    def probe(self, prompt: Prompt, name: str) -> _Request:
        """A request for one token of a prompt."""
        return replace(self, name=f"{self.name}, {name}", prompt=prompt, sampling=self.sampling.probe())


class EnginePool:
    """Chooses an engine for each group and knows which engines are up.

    Without a ``reviver`` every engine counts as up. With one, :meth:`supervise` must run beside the users of the pool.
    """

    def __init__(
        self,
        engines: Sequence[GenerationEngine],
        *,
        reviver: EngineReviver | None = None,
        restarts: Sequence[RestartBudget] | None = None,
        health: HealthLimits | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """``restarts``: how often each engine may be replaced, and was, for reasons other than a prompt; None for never.

        ``health``: when an engine counts as hung; None asks no engine.
        """
        budgets = restarts or [RestartBudget() for _ in engines]
        self._seats = [_Seat(engine, budget) for engine, budget in zip(engines, budgets, strict=True)]
        self._reviver = reviver
        self._health = health
        self._on_event = on_event
        self._changed = asyncio.Event()
        self._requests: dict[str, int] = {}  # in flight, by the engine that has it
        self._suspects = Suspects()
        self._one_suspect = asyncio.Lock()
        self._suspects_waiting = 0
        self._reserved: int | None = None  # the engine that is kept free for suspects
        self._last_done: Prompt | None = None

    def least_loaded(self) -> int | None:
        """Index of the engine with the fewest groups, the first of several; None while no engine can take one."""
        free = [index for index, seat in enumerate(self._seats) if seat.life.up and index != self._reserved]
        return min(free, key=lambda index: self._seats[index].life.load, default=None)

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
        """Ask engines whether they work and replace dead ones, until cancelled.

        Raises :class:`EngineUnusable` once no engine may be replaced any more.
        """
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self._seats)):
                tasks.create_task(self._keep_up(index))

    async def _keep_up(self, index: int) -> None:
        seat = self._seats[index]
        while not seat.given_up:
            await self._end_of(index, seat.life)
            await self._replace(index)

    async def _end_of(self, index: int, life: EngineLife) -> None:
        """Return when a life has ended, by what its groups report or by its health."""
        try:
            if self._health is None or self._reviver is None:
                await life.meanwhile(asyncio.Event().wait())
            else:
                await life.meanwhile(HealthCheck(life.engine, index, self._health, self._on_event).watch())
        except Unhealthy as error:
            self._lost(index, life, str(error))
        except GroupError:  # it has ended
            pass

    async def _run(self, index: int, group: _Request, *, alone: bool = False) -> Generation:
        """Generate a group. ``alone``: nothing else is in the engine, which is proven first where possible."""
        life = self._seats[index].life
        if life.cause is not None:  # a moment ago; the group was not in it
            raise GroupError(ENGINE_DIED, life.cause)
        done = life.done
        self._requests[group.name] = index
        try:
            generation = await life.generate(group.name, group.prompt, group.sampling, group.timeout)
        except TimeoutError:
            error = self._late(index, group)
            if isinstance(error, EnvironmentFault):
                raise error from None
            self._failed(index, life, group, error, died=life.done == done, alone=alone)  # hangs: did nothing else
            raise error from None
        except EnvironmentFault:
            raise
        except GroupError as error:
            if not error.permanent and error.reason != CUT_TOO_EARLY:
                self._failed(index, life, group, error, died=error.reason == ENGINE_DIED, alone=alone)
            raise
        finally:
            del self._requests[group.name]
            self._changed.set()
        self._last_done = group.prompt
        return generation

    def _late(self, index: int, group: _Request) -> GroupError:
        words = f"engine {index} did not finish {group.prompt.name} within {group.timeout:g} s"
        if self._health is None or self._health.must_finish_groups:
            return GroupError(GENERATE_TIMEOUT, words)
        return EnvironmentFault(GENERATE_TIMEOUT, f"{words}, its environments included (async.generate_timeout)")

    def _done(self, prompt: Prompt, generation: Generation) -> Generation:
        self._suspects.done(prompt)
        return generation

    def _failed(
        self, index: int, life: EngineLife, group: _Request, error: GroupError, *, died: bool, alone: bool
    ) -> None:
        """Count a failure against a life and a prompt, as far as either can be at fault. Raises ``PromptFault``."""
        prompt = group.prompt
        life.failures[prompt] += 1
        if died or life.sick:
            self._lost(index, life, str(error))
        if died and alone and life.proven:
            lives, fault = self._suspects.killed(prompt, error)
            for engine, number in (*lives, (index, life.number)):
                self._seats[engine].restarts.refund(number)
            raise fault
        if died:
            self._suspects.died(prompt, (index, life.number))
        else:
            self._suspects.failed(prompt, (index, life.number, life.done), error)

    def _lost(self, index: int, life: EngineLife, cause: str) -> None:
        """End a life of an engine; nothing happens if it is over."""
        if self._reviver is not None and life.up:
            self._seats[index].restarts.charge(life.number, _now())
            life.end(cause)

    @asynccontextmanager
    async def _engine_alone(self) -> AsyncIterator[int]:
        """Reserve an engine with nothing in it, one at a time; the other engines go on."""
        self._suspects_waiting += 1
        try:
            async with self._one_suspect:
                while (index := self._emptiest()) is None or self._seats[index].life.load > 0:
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
        up = [index for index, seat in enumerate(self._seats) if seat.life.up]
        return min(up, key=lambda index: (self._seats[index].life.load > 0, index != self._reserved), default=None)

    async def _prove(self, index: int, group: _Request) -> None:
        """Show that a new engine works at all, with a prompt that was done before, where there is one."""
        if not self._seats[index].life.proven and self._last_done not in (None, group.prompt):
            await self._run(index, group.probe(self._last_done, "control"))

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _replace(self, index: int) -> None:
        """Replace an engine whose life has ended; one that was lost too often, only when that is an hour ago."""
        assert self._reviver is not None
        seat = self._seats[index]
        while (cause := seat.life.cause) is not None:
            self._on_event(EngineLost(engine=index, message=cause))
            if seat.restarts.count(_now()) > seat.restarts.most:
                self._give_up(index, cause)
                if not seat.restarts.most:
                    return
                await asyncio.sleep(seat.restarts.seconds_left(_now()))
                seat.given_up = False
            try:
                await self._reviver.revive(index)
                seat.life = EngineLife.of(seat.engine)
            except NotRevived as error:
                seat.life = EngineLife.of(seat.engine, str(error))
                seat.restarts.charge(seat.life.number, _now())
        self._on_event(EngineReplaced(engine=index, times=seat.restarts.count(_now())))
        self._changed.set()

    def _give_up(self, index: int, cause: str) -> None:
        """Go on without an engine. Raises :class:`EngineUnusable` if it was the last one."""
        seat = self._seats[index]
        seat.given_up = True
        seat.engine.stop(cause, life=seat.life.number)
        left = sum(not other.given_up for other in self._seats)
        replaced = seat.restarts.count(_now()) - 1
        message = f"engine {index} failed after {replaced} replacements within an hour (vllm.max_restarts): {cause}"
        self._on_event(EngineGivenUp(engine=index, left=left, message=message))
        if not left:
            raise EngineUnusable(f"{message}. Look at its log in Ray's session folder{self._suspects.words()}")
        self._changed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A pool of engines with fixed sampling settings and a fixed time limit per group.

    With a ``seed`` every response is sampled with a seed of its own, whatever the engine samples beside it.
    """

    engines: EnginePool
    sampling: Sampling
    timeout: float
    """Time limit of a group in seconds, see :meth:`EnginePool.generate`."""
    seed: int | None = None
    attempts: Attempts | None = None
    """After how many failures of its environments a prompt is given up; None leaves that to the caller."""

    async def sample(self, request: str, prompt: Prompt, place: int) -> Generation:
        """Generate a group; ``request`` is a unique name. Raises :class:`GroupError`.

        The same seed, prompt and ``place`` give the same seeds of responses, which no other prompt or place gets.
        """
        sampling = self.sampling
        if self.seed is not None:
            sampling = replace(sampling, seed=_number(f"{self.seed}/{prompt.id}/{place}"))
        try:
            generation = await self.engines.generate(request, prompt, sampling, self.timeout)
        except EnvironmentFault as error:
            if self.attempts is None or error.blameless:
                raise
            raise self.attempts.failed(prompt, error) from error.__cause__
        if self.attempts is not None:
            self.attempts.succeeded(prompt)
        return generation


def _now() -> float:
    return asyncio.get_running_loop().time()


def _number(text: str) -> int:
    """A number from 0 to 2^62 that looks random, and is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 2
