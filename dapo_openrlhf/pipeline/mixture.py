"""Draws from several sets of prompts, each in its share (standard library)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

from dapo_openrlhf.pipeline.curriculum import Curriculum, Difficulty, Memory
from dapo_openrlhf.pipeline.orders import Draw, Passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How prompts are drawn."""

    sizes: tuple[int, ...] = ()
    """Number of prompts in each set, whose prompts follow those of the one before; empty: all prompts are one set."""
    shares: tuple[float, ...] = (1.0,)
    """The share of the draws that each set gets; together 1."""
    difficulty: Difficulty | None = None
    """What draws go by besides the order; None goes through each set pass by pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetState:
    """How far a run has come with one set."""

    drawn: int
    """Number of prompts drawn from it."""
    credit: float = 0.0
    """By how many draws it is behind its share."""
    memory: Memory | None = None
    """What is remembered of its prompts; None without a curriculum."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The state out of JSON."""
        memory = values["memory"]
        return cls(
            drawn=values["drawn"], credit=values["credit"], memory=None if memory is None else Memory.read(memory)
        )


class Mixture:
    """An endless order of the prompts of all sets.

    The set that is furthest behind its share comes next, so that after any number of draws each has had its share to
    within the number of sets: chance would take hundreds of draws for that.
    """

    def __init__(self, count: int, drawing: Drawing, *, seed: int, states: Sequence[SetState]) -> None:
        """``count``: number of prompts. ``states``: where to go on, one for each set, or none."""
        sizes = drawing.sizes or (count,)
        self._begins = [0, *accumulate(sizes)]
        self._shares = drawing.shares
        states = states or [SetState(drawn=0)] * len(sizes)
        self._drawn = [state.drawn for state in states]
        self._credits = [state.credit for state in states]
        self._orders = [
            self._order(index, drawing.difficulty, seed=str(seed) if index == 0 else f"{seed}/set {index}", state=state)
            for index, state in enumerate(states)
        ]

    def _order(self, index: int, difficulty: Difficulty | None, *, seed: str, state: SetState) -> Passes | Curriculum:
        begin, end = self._begins[index : index + 2]
        if difficulty is None:
            return Passes(end - begin, seed=seed, drawn=state.drawn)
        own = Difficulty(
            batch_size=difficulty.batch_size,
            responses=difficulty.responses,
            lengths=difficulty.lengths[begin:end],
        )
        return Curriculum(own, seed=seed, memory=state.memory)

    def next(self) -> Draw:
        """Draw a prompt."""
        self._credits = [credit + share for credit, share in zip(self._credits, self._shares, strict=True)]
        index = max(range(len(self._credits)), key=self._credits.__getitem__)
        self._credits[index] -= 1
        self._drawn[index] += 1
        draw = self._orders[index].next()
        return Draw(self._begins[index] + draw.prompt, draw.reason)

    def learn(self, prompt: int, rate: float, responses: int) -> None:
        """Learn that a share ``rate``, 0 to 1, of ``responses`` responses to the prompt is right."""
        index = self._set_of(prompt)
        self._orders[index].learn(prompt - self._begins[index], rate, responses)

    def drop(self, prompt: int) -> None:
        """Avoid the prompt, which whoever draws passes over."""
        index = self._set_of(prompt)
        self._orders[index].drop(prompt - self._begins[index])

    def states(self) -> tuple[SetState, ...]:
        """The state of each set, to go on from."""
        return tuple(
            SetState(drawn=drawn, credit=credit, memory=order.memory())
            for drawn, credit, order in zip(self._drawn, self._credits, self._orders, strict=True)
        )

    def _set_of(self, prompt: int) -> int:
        return next(index for index, end in enumerate(self._begins[1:]) if prompt < end)
