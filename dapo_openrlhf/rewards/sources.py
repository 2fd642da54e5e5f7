"""The sources of rewards: the rule, a user's Python file, an HTTP server (run in a reward process only)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from dapo_openrlhf.config.choices import AnswerForm
from dapo_openrlhf.config.reward_origin import PythonFile, RewardOrigin, Rule, Server
from dapo_openrlhf.rewards import verifier
from dapo_openrlhf.rewards.failures import SourceFailed
from dapo_openrlhf.rewards.gold import gold_answer
from dapo_openrlhf.rewards.question import Question, RewardSource
from dapo_openrlhf.rewards.replies import sensible
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.types import Score


def open_source(origin: RewardOrigin, settings: RewardSettings) -> RewardSource:
    """The reward that one of ``settings.sources`` stands for. Raises what a user's file raises."""
    match origin:
        case Rule():
            return RuleReward(answer_form=settings.answer_form)
        case Server(address):
            from dapo_openrlhf.rewards.server import ServerReward

            return ServerReward(address=address, correct_from=settings.correct_from, timeout=settings.timeout)
        case PythonFile(path):
            from dapo_openrlhf.rewards.function import FunctionReward, load_function

            function = FunctionReward(load_function(path), correct_from=settings.correct_from)
            return OneByOne(function) if settings.files_one_by_one else function
        case _:
            assert_never(origin)


class RuleReward:
    """DAPO eq. 7: +1 for an answer equivalent to the gold one, else -1."""

    def __init__(self, *, answer_form: AnswerForm) -> None:
        """``answer_form``: whether any expression of its value, or only a number, is an answer to a number."""
        from dapo_openrlhf.rewards import algebra  # imports mpmath, which nothing else needs

        algebra.prepare()
        self._number_form = _number_form(answer_form)
        self._equal = functools.lru_cache(maxsize=256)(algebra.equal)  # a group's answers repeat each other

    def __call__(self, question: Question) -> list[Score]:
        """Score each response; raises :class:`Undecided`."""
        return [self._judge(response, question) for response in question.responses]

    def _judge(self, response: str, question: Question) -> Score:
        answer, gold = verifier.extract_answer(response, question.prompt), gold_answer(question.label)
        correct = answer is not None and verifier.compare(answer, gold, self._equal, number_form=self._number_form)
        return Score(correct=correct, reward=verifier.RIGHT if correct else verifier.WRONG)


def _number_form(answer_form: AnswerForm) -> bool:
    match answer_form:
        case "any":
            return False
        case "number":
            return True
        case _:
            assert_never(answer_form)


@dataclass(frozen=True, slots=True)
class OneByOne:
    """A reward that is asked about one response at a time."""

    source: RewardSource

    def __call__(self, question: Question) -> list[Score]:
        """Score each response. Raises what the reward raises."""
        alone = [
            replace(question, responses=[response], queries=[query])
            for response, query in zip(question.responses, question.queries, strict=True)
        ]
        return [score for part in alone for score in self.source(part)]


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """Several rewards: their weighted sum is trained, the first alone decides which answers are right."""

    names: Sequence[str]
    """The names that messages use for the rewards."""
    sources: Sequence[RewardSource]
    weights: Sequence[float]

    def __call__(self, question: Question) -> list[Score]:
        """Score each response. Raises :class:`SourceFailed`, or errors that are not due to a user's code."""
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
        for score in reversed(scores):  # of two values with the same name that of the first source stays
            logs.update(score.logs)
        reward = math.fsum(weight * score.reward for weight, score in zip(self.weights, scores, strict=True))
        return Score(correct=scores[0].correct, reward=sensible(reward), score=scores[0].score, logs=logs)
