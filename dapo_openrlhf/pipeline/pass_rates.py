"""What is known of prompts' pass rates, while the policy that is measured moves (standard library).

A pass rate of some time ago is not today's. What lasts longer is how much harder a prompt is than others like it, in
logits (Rasch's model, by which tests of people are scored). So a prompt's *offset* is the logit of its pass rate less the
*level*, the running mean at that time; its pass rate today is that of the level today plus the offset. An offset counts
for less the fewer the responses behind it and the longer ago they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

RUNNING_GROUPS = 32
"""Number of groups over which level and share are running means; means over all as long as there are fewer."""

PRIOR_RESPONSES = 16.0
"""Number of responses from which an offset counts half. On the quickstart's task a prompt with 4 of 8 right, where others
had 92 %, had 88 % some steps later: most of an offset is chance, or is trained away."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the outcomes of a prompt have shown."""

    offset: float
    """Logit of the pass rate less the level; negative for a hard prompt."""
    responses: float
    """Number of responses behind the offset, older ones counted for less."""
    at: int
    """Number of outcomes learned when the prompt's last one was."""


NOTHING = Known(0.0, 0.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The state of :class:`PassRates`."""

    level: float = 0.0
    """Running mean of the logits of pass rates, less the offsets."""
    outcomes: int = 0
    """Number of outcomes learned."""
    mixed: float = 1.0
    """Running share of groups with right and wrong responses, among prompts of which little was known."""
    little_known: int = 0
    """Number of outcomes of such prompts."""
    known: dict[int, Known] = field(default_factory=dict)
    """By prompt."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The state out of JSON, whose keys are text."""
        return cls(**{**values, "known": {int(prompt): Known(**known) for prompt, known in values["known"].items()}})


class PassRates:
    """The pass rates of prompts of one kind, learned from outcomes one by one."""

    def __init__(self, *, responses: int, half_life: float, state: Rates) -> None:
        """``responses``: G, the size of a group. ``half_life``: number of outcomes of this kind after which one counts
        half. ``state``: where to go on."""
        self._responses = responses
        self._half_life = half_life
        self._level, self._outcomes = state.level, state.outcomes
        self._mixed, self._little_known = state.mixed, state.little_known
        self._known = dict(state.known)

    def learn(self, prompt: int, rate: float, responses: int) -> None:
        """Learn that a share ``rate``, 0 to 1, of ``responses`` responses to the prompt is right."""
        logit = math.log((rate * responses + 0.5) / ((1 - rate) * responses + 0.5))
        offset, weight = self._remembered(prompt)
        self._outcomes += 1
        self._level += (logit - _shrunk(offset, weight) - self._level) / min(self._outcomes, RUNNING_GROUPS)
        if weight < PRIOR_RESPONSES:
            self._little_known += 1
            self._mixed += ((0 < rate < 1) - self._mixed) / min(self._little_known, RUNNING_GROUPS)
        mean = (weight * offset + responses * (logit - self._level)) / (weight + responses)
        self._known[prompt] = Known(mean, weight + responses, self._outcomes)

    def chance(self, prompt: int) -> float:
        """The chance that a group of the prompt has right and wrong responses.

        It is the share measured lately among prompts of which little was known, times what the prompt's offset changes
        in 1 - p^G - (1 - p)^G.
        """
        offset = _shrunk(*self._remembered(prompt))
        return min(1.0, self._mixed * self._both(self._level + offset) / self._both(self._level))

    def state(self) -> Rates:
        """The state to go on from."""
        return Rates(
            level=self._level,
            outcomes=self._outcomes,
            mixed=self._mixed,
            little_known=self._little_known,
            known=dict(self._known),
        )

    def _remembered(self, prompt: int) -> tuple[float, float]:
        """The prompt's offset, and the number of responses that it counts for now."""
        known = self._known.get(prompt, NOTHING)
        return known.offset, known.responses * 0.5 ** ((self._outcomes - known.at) / self._half_life)

    def _both(self, logit: float) -> float:
        rate = 1 / (1 + math.exp(-logit))
        return 1 - rate**self._responses - (1 - rate) ** self._responses


def _shrunk(offset: float, weight: float) -> float:
    return offset * weight / (weight + PRIOR_RESPONSES)
