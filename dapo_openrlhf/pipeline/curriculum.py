"""Draws prompts by their difficulty: those with right and wrong responses more often (standard library).

What engines generate for a group whose responses are all right, or all wrong, is lost to training. So each draw goes to
the prompt that promises most to give a mixed group: the one that has *waited* longest, the next *new* one of each length,
or one of some that were drawn before and come *again*. Prompts of like length share a level, since what is learned of one
says something of the others. Every :data:`TURN`-th draw goes to the prompt that has waited longest, whatever it promises.

**No prompt starves: in a set of n, each is among any TURN · n draws.** For those that wait stand in a queue, new ones
first, and every draw puts its prompt at the end, so nobody falls back; and of TURN · n draws at least n take the first.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dapo_openrlhf.pipeline.orders import IN_TURN, Draw, shuffled
from dapo_openrlhf.pipeline.pass_rates import PassRates, Rates

AGAIN = "again"
"""Reason of a prompt that was drawn before, and comes out of turn for its pass rate."""

NEW = "new"
"""Reason of a prompt that comes for the first time, before its turn, for the pass rates of prompts of its length."""

TURN = 4
"""Every this many draws, the prompt that has waited longest comes."""

CANDIDATES = 32
"""Number of prompts drawn before, at random, that are looked at for each draw."""

REST_BATCHES = 8
"""A prompt does not come again within this many batches' worth of draws, unless in its turn; in a small set not within a
quarter of the set."""

HALF_LIFE_BATCHES = 64
"""After this many batches' worth of outcomes, one counts half."""

MOST_LENGTHS = 8
"""Number of classes of length, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """What a :class:`Curriculum` goes by, besides outcomes."""

    batch_size: int
    """P: number of groups in a batch."""
    responses: int
    """G: number of responses to a prompt."""
    lengths: Sequence[int]
    """Length of each prompt, in any unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The state of a :class:`Curriculum`."""

    drawn: int = 0
    """Number of draws."""
    last: tuple[tuple[int, int], ...] = ()
    """Each prompt drawn so far with the number of its last draw, in the order of their first ones."""
    rates: tuple[Rates, ...] = ()
    """What was learned of each class of length."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The state out of JSON."""
        last = tuple((prompt, draw) for prompt, draw in values["last"])
        return cls(drawn=values["drawn"], last=last, rates=tuple(map(Rates.read, values["rates"])))


class Curriculum:
    """An endless order of a set's prompts that follows their pass rates."""

    def __init__(self, difficulty: Difficulty, *, seed: str, memory: Memory | None = None) -> None:
        """``memory``: where to go on."""
        memory = memory or Memory()
        self._class_of = classes(difficulty.lengths)
        count = max(self._class_of) + 1
        half_life = HALF_LIFE_BATCHES * difficulty.batch_size / count
        self._rates = [
            PassRates(responses=difficulty.responses, half_life=half_life, state=state)
            for state in memory.rates or (Rates(),) * count
        ]
        self._seed = seed
        self._rest = min(REST_BATCHES * difficulty.batch_size, len(difficulty.lengths) // 4)
        self._drawn = memory.drawn
        self._begun = [prompt for prompt, _ in memory.last]
        self._last = dict(sorted(memory.last, key=lambda pair: pair[1]))  # in the order of the last draws
        self._dropped: set[int] = set()
        self._order = shuffled(len(difficulty.lengths), seed=seed, episode=0)
        self._new: list[deque[int]] = [deque() for _ in range(count)]  # places in the order
        for place, prompt in enumerate(self._order):
            if prompt not in self._last:
                self._new[self._class_of[prompt]].append(place)

    def next(self) -> Draw:
        """The prompt that promises most; every so often the one that has waited longest."""
        self._drawn += 1
        first = Draw(self._longest_waiting(), IN_TURN)
        draw = first if self._drawn % TURN == 0 else max([first, *self._out_of_turn()], key=self._chance)
        if draw.prompt not in self._last:
            self._begun.append(draw.prompt)
            self._new[self._class_of[draw.prompt]].popleft()
        self._last.pop(draw.prompt, None)
        self._last[draw.prompt] = self._drawn
        return draw

    def learn(self, prompt: int, rate: float, responses: int) -> None:
        """Learn that a share ``rate``, 0 to 1, of ``responses`` responses to the prompt is right."""
        self._rates[self._class_of[prompt]].learn(prompt, rate, responses)

    def drop(self, prompt: int) -> None:
        """Draw the prompt in its turn only."""
        self._dropped.add(prompt)

    def memory(self) -> Memory:
        """The state to go on from."""
        return Memory(
            drawn=self._drawn,
            last=tuple((prompt, self._last[prompt]) for prompt in self._begun),
            rates=tuple(rates.state() for rates in self._rates),
        )

    def _chance(self, draw: Draw) -> float:
        return self._rates[self._class_of[draw.prompt]].chance(draw.prompt)

    def _longest_waiting(self) -> int:
        places = [new[0] for new in self._new if new]
        return self._order[min(places)] if places else next(iter(self._last))

    def _out_of_turn(self) -> Iterator[Draw]:
        for new in self._new:
            if new:
                yield Draw(self._order[new[0]], NEW)
        if not self._begun:
            return
        dice = random.Random(f"{self._seed}/{self._drawn}/{AGAIN}")
        for prompt in dice.choices(self._begun, k=CANDIDATES):
            if self._drawn - self._last[prompt] > self._rest and prompt not in self._dropped:
                yield Draw(prompt, AGAIN)


def classes(lengths: Sequence[int]) -> list[int]:
    """The class of each length, from 0: up to :data:`MOST_LENGTHS` of about as many prompts; like lengths are in one."""
    ordered = sorted(lengths)
    edges = sorted({ordered[len(ordered) * part // MOST_LENGTHS] for part in range(1, MOST_LENGTHS)} - {ordered[0]})
    return [bisect_right(edges, length) for length in lengths]
