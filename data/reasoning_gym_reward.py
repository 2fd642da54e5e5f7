"""Reward for prompts of `dapo-openrlhf prepare reasoning-gym:TASK` whose label is the task's entry.

    dapo-openrlhf train --reward.remote_url data/reasoning_gym_reward.py ...

The answer line of a response (`Answer: ...`, on one line) is given to the task's own scorer. Some of these scorers give
a wrong answer that is at least well formed 0.01 or more; only the full 1.0 counts as right.
"""

import functools
import json
import sys
import types
from collections.abc import Callable, Sequence

from dapo_openrlhf.rewards.verifier import RIGHT, WRONG, extract_answer

FULL_SCORE = 1.0


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], *, responses: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """`rewards` of +1 or -1 (arXiv 2503.14476, eq. 7) and `scores` of 1 or 0."""
    if responses is None:
        responses = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    right = [
        is_right(response, **json.loads(label))  # queries end with the end-of-turn token
        for response, label in zip(responses, labels, strict=True)
    ]
    return {"rewards": [RIGHT if r else WRONG for r in right], "scores": [float(r) for r in right]}


def is_right(response: str, task: str, entry: dict[str, object]) -> bool:
    """Whether the task's scorer gives a response's answer the full score."""
    answer = extract_answer(response)
    return answer is not None and _scorer(task)(answer, entry) >= FULL_SCORE


@functools.cache
def _scorer(task: str) -> Callable[[str, dict[str, object]], float]:
    # A SAT solver that comes as source only and of which just the zebra puzzles make use.
    sys.modules.setdefault("pycosat", types.ModuleType("pycosat"))
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)
