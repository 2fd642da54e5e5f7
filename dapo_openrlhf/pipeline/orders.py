"""The order in which a set's prompts are drawn, without regard to their difficulty (standard library)."""

from __future__ import annotations

import random
from typing import NamedTuple

IN_TURN = "in_turn"
"""Reason of a prompt that is drawn because of its place in the order."""


class Draw(NamedTuple):
    """A decision which prompt comes next."""

    prompt: int
    """Position in the set, from 0."""
    reason: str
    """``in_turn``, or another reason, which metrics count."""


def shuffled(count: int, *, seed: str, episode: int) -> list[int]:
    """The positions from 0 to ``count`` in an order that seed and episode determine."""
    order = list(range(count))
    random.Random(f"{seed}/{episode}").shuffle(order)
    return order


class Passes:
    """Goes through the whole set once in each episode, in an order given by seed and episode."""

    def __init__(self, count: int, *, seed: str, drawn: int = 0) -> None:
        """``drawn``: number of prompts drawn before."""
        self._count = count
        self._seed = seed
        self._drawn = drawn
        self._order = shuffled(count, seed=seed, episode=drawn // count)

    def next(self) -> Draw:
        """The next prompt of the episode."""
        episode, place = divmod(self._drawn, self._count)
        if place == 0:
            self._order = shuffled(self._count, seed=self._seed, episode=episode)
        self._drawn += 1
        return Draw(self._order[place], IN_TURN)

    def learn(self, prompt: int, rate: float, responses: int) -> None:
        """Outcomes do not change the order."""

    def drop(self, prompt: int) -> None:
        """Prompts that are dropped keep their places, and whoever draws passes over them."""

    def memory(self) -> None:
        """Nothing is remembered but the number of draws."""
