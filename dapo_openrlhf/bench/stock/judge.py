"""The reward file that stock OpenRLHF is given for a user's configuration: it judges as this project does.

OpenRLHF calls it with one response at a time, on several threads of an engine's process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Sequence

from dapo_openrlhf.bench.stock.terms import JUDGE, Terms, question_of
from dapo_openrlhf.config.reward_origin import Rule
from dapo_openrlhf.rewards import verifier
from dapo_openrlhf.rewards.failures import Undecided
from dapo_openrlhf.rewards.question import RewardSource
from dapo_openrlhf.rewards.sources import WeightedReward, open_source
from dapo_openrlhf.types import Score

_ONE_AT_A_TIME = threading.Lock()


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, object]:
    """One response's reward and score, in the form that OpenRLHF 0.11.2 takes.

    Raises what a user's reward raises. What the rule cannot decide is wrong here, since OpenRLHF does not try again.
    """
    (query,), (prompt,), (label,) = queries, prompts, labels
    with _ONE_AT_A_TIME:
        terms, reward = _opened()
    question = question_of(query, prompt, label, terms.unheard)
    with _ONE_AT_A_TIME if _by_rule(terms) else contextlib.nullcontext():  # whose precision is global
        try:
            (score,) = reward(question)
        except Undecided:
            score = Score(correct=False, reward=verifier.WRONG)
    return {"rewards": score.reward, "scores": _score(score, by_scores=terms.by_scores)}


def _by_rule(terms: Terms) -> bool:
    return any(isinstance(source, Rule) for source in terms.settings.sources)


def _score(score: Score, *, by_scores: bool) -> float:
    return score.score if by_scores and score.score is not None else float(score.correct)


@functools.cache
def _opened() -> tuple[Terms, RewardSource]:
    terms = Terms.from_json(os.environ[JUDGE])
    sources = terms.settings.sources
    opened = [open_source(source, terms.settings) for source in sources]
    return terms, WeightedReward([source.short_name for source in sources], opened, terms.settings.weights)
