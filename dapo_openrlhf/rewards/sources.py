"""Where rewards come from: the rule, a user's Python file, an HTTP server (run in a judge's process only)."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dapo_openrlhf import verifier
from dapo_openrlhf.gold import gold_answer
from dapo_openrlhf.judge.replies import sensible
from dapo_openrlhf.types import Score

RULE = "rule"
"""The name of the rule reward (eq. 7) where a file or an address may stand too."""


class Undecided(BaseException):
    """Whether an answer is right is not known: it is too expensive, or there is too little memory or stack to tell.

    No ``Exception``: nothing on the way may take it for "not equal".
    """


class ServerAway(OSError):
    """A reward server cannot be reached, which says nothing about the responses: it may be asked again later."""


class ServerLate(ServerAway):
    """It took the request and did not answer in time."""


class SourceFailed(RuntimeError):
    """One of the rewards failed; ``__cause__`` says how, the message names the reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Responses to one prompt, to be judged together."""

    responses: Sequence[str]
    """Without special tokens."""
    queries: Sequence[str]
    """Prompt and response as the model saw and wrote them, special tokens included."""
    prompt: str
    """As the model saw it, special tokens included."""
    label: object
    columns: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.responses)


class RewardSource(Protocol):
    """One reward. Raises whatever goes wrong: an error is never a wrong answer."""

    def __call__(self, question: Question) -> list[Score]:
        """Judge each response."""
        ...


def open_source(name: str, *, number_form: bool, correct_from: float, timeout: float) -> RewardSource:
    """The reward that ``reward.remote_url`` names: ``rule``, a file ending in ``.py``, or an http(s) address."""
    if name == RULE:
        return RuleReward(number_form=number_form)
    if name.startswith(("http://", "https://")):
        from dapo_openrlhf.judge.server import ServerReward

        return ServerReward(address=name, correct_from=correct_from, timeout=timeout)
    from dapo_openrlhf.judge.function import FunctionReward, load_function

    return FunctionReward(load_function(name), correct_from=correct_from)


def short_name(source: str) -> str:
    """How messages call a reward: a file without its folders."""
    return os.path.basename(source) if source.endswith(".py") else source


class RuleReward:
    """DAPO eq. 7: +1 for an answer equivalent to the gold one, else -1."""

    def __init__(self, *, number_form: bool = False) -> None:
        """``number_form``: whether a number must be answered with a number, and not with what gives it."""
        from dapo_openrlhf.judge import algebra  # mpmath, and only here

        algebra.prepare()
        self._number_form = number_form
        self._equal = functools.lru_cache(maxsize=256)(algebra.equal)  # a group's answers repeat each other

    def __call__(self, question: Question) -> list[Score]:
        """Judge each response; raises :class:`Undecided`."""
        return [self._judge(response, question) for response in question.responses]

    def _judge(self, response: str, question: Question) -> Score:
        answer, gold = verifier.extract_answer(response, question.prompt), gold_answer(question.label)
        correct = answer is not None and verifier.compare(answer, gold, self._equal, number_form=self._number_form)
        return Score(correct=correct, reward=verifier.RIGHT if correct else verifier.WRONG)


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """Several rewards: their weighted sum trains, the first alone decides on right."""

    names: Sequence[str]
    """As messages call them."""
    sources: Sequence[RewardSource]
    weights: Sequence[float]

    def __call__(self, question: Question) -> list[Score]:
        """Judge each response. Raises :class:`SourceFailed`, or what is no user's fault."""
        asked = [self._ask(name, source, question) for name, source in zip(self.names, self.sources, strict=True)]
        return [self._weigh(scores) for scores in zip(*asked, strict=True)]

    def _ask(self, name: str, source: RewardSource, question: Question) -> list[Score]:
        try:
            return source(question)
        except MemoryError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise SourceFailed(name) from error

    def _weigh(self, scores: Sequence[Score]) -> Score:
        logs: dict[str, float] = {}
        for score in reversed(scores):  # of two with one name the first source's stays
            logs.update(score.logs)
        reward = math.fsum(weight * score.reward for weight, score in zip(self.weights, scores, strict=True))
        return Score(correct=scores[0].correct, reward=sensible(reward), score=scores[0].score, logs=logs)
