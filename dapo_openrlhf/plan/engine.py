"""A model of an inference engine with continuous batching, in virtual time.

All running sequences gain one token per decode step, so the engine needs no event per step: between two arrivals or
ends it is known how many steps pass in how many seconds.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.ports import CUT_TOO_EARLY, GroupError, Health, Sampling
from dapo_openrlhf.plan.scenario import EngineSpeed, Sample
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt

ROUNDING = 1e-9
"""In decode steps: ends that are no further apart are one."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """A running or waiting response."""

    group: _Group
    index: int
    begin: float | None = None
    """Progress of the engine, in decode steps, at which it began; None while it waits."""
    ended: bool = False
    counted: int = 0
    """Tokens that are counted in the group's :attr:`_Group.made` already."""


@dataclass(slots=True, eq=False)
class _Group:
    sample: Sample
    prompt_tokens: int
    done: asyncio.Future[None]
    unfinished: int
    lengths: list[int]
    cut: list[bool]
    sequences: list[_Sequence] = field(default_factory=list)
    oldest: int | None = None
    """Version of the weights that its first token was sampled from."""
    made: Counter[int] = field(default_factory=Counter)
    """Number of tokens by the version that sampled them."""


class SimulatedEngine:
    """A ``GenerationEngine`` whose responses are drawn from samples. It has one life, which does not end."""

    life = 0

    def __init__(self, index: int, speed: EngineSpeed, draw: Callable[[Prompt], Sample], *, version: int) -> None:
        """``draw`` gives the responses to a prompt, ``version`` is that of the first weights."""
        self._index = index
        self._speed = speed
        self._draw = draw
        self._version = version
        # Progress at the end, number and sequence; the heap may hold some that were cut.
        self._running: list[tuple[float, int, _Sequence]] = []
        self._count = 0  # sequences that run
        self._waiting: deque[_Sequence] = deque()
        self._groups: dict[str, _Group] = {}
        self._numbers = itertools.count()
        self._progress = 0.0
        self._context = 0.0
        self._then = 0.0  # the time that progress and context belong to; later than now during a pause
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the next sequence ends, if nothing changes
        self._now = asyncio.get_running_loop().time
        self._slowness = 1.0
        self.busy = 0.0
        """Seconds in which at least one sequence ran."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when it begins and when it ceases to generate."""
        self._was_generating = False

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """Sample a group. Raises :class:`GroupError` if it was cut before each response had a token."""
        sample = self._draw(prompt)
        size = len(sample.lengths)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group = _Group(sample, len(prompt.token_ids), done, size, [0] * size, [False] * size)
        self._groups[request] = group
        self._advance()
        group.sequences = [_Sequence(group, index) for index in range(size)]
        self._waiting.extend(group.sequences)
        self._admit()
        try:
            await done
            if self._speed.latency > 0:
                await asyncio.sleep(self._speed.latency)
        except asyncio.CancelledError:
            self.cut(request)
            raise
        finally:
            del self._groups[request]
        if 0 in group.lengths:
            raise GroupError(CUT_TOO_EARLY, f"prompt {prompt.id} was cut before each of its responses had a token")
        assert group.oldest is not None
        return Generation(
            prompt_length=group.prompt_tokens,
            lengths=tuple(group.lengths),
            truncated=tuple(
                cut or length >= sampling.max_new_tokens for cut, length in zip(group.cut, group.lengths, strict=True)
            ),
            cut=tuple(group.cut),
            oldest_version=PolicyVersion(group.oldest),
            newest_version=PolicyVersion(self._version),
            version_tokens=tuple(group.made[version] for version in range(group.oldest, self._version + 1)),
            engine=self._index,
            tokens=sample,
            texts=sample,
        )

    async def health(self) -> Health:
        """It is always well."""
        return Health(doing="generating", steps_begun=0, steps_ended=0)

    def stop(self, cause: str, *, life: int) -> bool:
        """Nobody may end it."""
        raise AssertionError(cause)

    def cut(self, request: str) -> None:
        """End a group with the tokens so far."""
        if (group := self._groups.get(request)) is None:
            return
        self._advance()
        for sequence in group.sequences:
            if not sequence.ended:
                group.cut[sequence.index] = True
                self._end(sequence, 0 if sequence.begin is None else int(self._progress - sequence.begin))
        self._admit()

    def load(self, version: int, *, pause: float) -> None:
        """Take new weights, generating nothing for ``pause`` seconds."""
        self._advance()
        for _, _, sequence in self._running:
            if not sequence.ended and sequence.begin is not None:
                self._count_tokens(sequence, int(self._progress - sequence.begin))
        self._version = version
        self._stall(pause)
        self._schedule()

    @property
    def generating(self) -> bool:
        """Whether a sequence runs."""
        return self._count > 0

    def slow_down(self, factor: float) -> None:
        """Take ``factor`` times as long for each decode step from now on."""
        self._advance()
        self._slowness = factor
        self._schedule()

    def _advance(self) -> None:
        """Let the running sequences gain the tokens of the time that has passed."""
        now = self._now()
        if now <= self._then:
            return
        if self._count:
            seconds = (now - self._then) / self._slowness
            steps = self._speed.steps(seconds, sequences=self._count, context=self._context)
            self._progress += steps
            self._context += steps * self._count
            self.busy += now - self._then
        self._then = now

    def _stall(self, seconds: float) -> None:
        if self._count and seconds > 0:
            self.busy += seconds
        self._then = max(self._then, self._now()) + seconds

    def _admit(self) -> None:
        while self._waiting and self._count < self._speed.most_sequences:
            sequence = self._waiting.popleft()
            if sequence.ended:
                continue
            group = sequence.group
            if group.oldest is None:
                group.oldest = self._version
                self._stall(self._speed.per_prompt_token * group.prompt_tokens)
            sequence.begin = self._progress
            end = self._progress + group.sample.lengths[sequence.index]
            heapq.heappush(self._running, (end, next(self._numbers), sequence))
            self._count += 1
            self._context += group.prompt_tokens
        self._schedule()

    def _schedule(self) -> None:
        """See to it that the next end is not missed. A timer that is too early stays, and is set anew when it fires."""
        while self._running and self._running[0][2].ended:
            heapq.heappop(self._running)
        self._due = math.inf
        if self._running:
            steps = max(0.0, self._running[0][0] - self._progress)
            seconds = self._speed.seconds(steps, sequences=self._count, context=self._context) * self._slowness
            self._due = self._then + seconds
        if self._timer is not None and self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._running:
            self._timer = asyncio.get_running_loop().call_at(self._due, self._wake)
        if self.generating != self._was_generating:
            self._was_generating = self.generating
            self.on_change()

    def _wake(self) -> None:
        self._timer = None
        if self._now() < self._due:
            self._schedule()
        else:
            self._finish()

    def _finish(self) -> None:
        """End the sequences that have all their tokens."""
        self._advance()
        self._progress = max(self._progress, self._running[0][0])  # rounding must not leave it behind
        while self._running and self._running[0][0] <= self._progress + ROUNDING:
            _, _, sequence = heapq.heappop(self._running)
            if not sequence.ended:
                self._end(sequence, sequence.group.sample.lengths[sequence.index])
        self._admit()

    def _count_tokens(self, sequence: _Sequence, length: int) -> None:
        """Attribute the tokens up to a length, as far as they are not counted yet, to the current version."""
        sequence.group.made[self._version] += length - sequence.counted
        sequence.counted = length

    def _end(self, sequence: _Sequence, length: int) -> None:
        sequence.ended = True
        self._count_tokens(sequence, length)
        group = sequence.group
        if sequence.begin is not None:
            self._count -= 1
            self._context -= group.prompt_tokens + length
        group.lengths[sequence.index] = length
        group.unfinished -= 1
        if group.unfinished == 0 and not group.done.done():
            group.done.set_result(None)
