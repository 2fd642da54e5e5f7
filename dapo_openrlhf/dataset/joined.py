"""Several sets of prompts as one."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from dapo_openrlhf.dataset.store import Prompts, PromptSet
from dapo_openrlhf.types import Prompt


class JoinedSets(Prompts):
    """The prompts of one set after those of the other; a prompt's id is its place among all."""

    def __init__(self, sets: Sequence[PromptSet]) -> None:
        """``sets``: at least one."""
        self._sets = tuple(sets)
        self._begins = [0, *accumulate(self.sizes)]

    @property
    def sets(self) -> tuple[PromptSet, ...]:
        """The sets, in their order."""
        return self._sets

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of prompts in each set."""
        return tuple(map(len, self._sets))

    @property
    def identity(self) -> str:
        """The text by which the prompts are recognised; that of the set where there is one."""
        words = [one.identity for one in self._sets]
        return words[0] if len(words) == 1 else hashlib.sha256(" ".join(words).encode()).hexdigest()[:32]

    def lengths(self) -> list[int]:
        """The number of tokens of each prompt."""
        return [length for one in self._sets for length in one.lengths()]

    def __len__(self) -> int:
        return self._begins[-1]

    def prompt(self, index: int) -> Prompt:
        """The prompt at a place from 0 among all."""
        at = bisect_right(self._begins, index) - 1
        prompt = self._sets[at].prompt(index - self._begins[at])
        return prompt if at == 0 else replace(prompt, id=index)
