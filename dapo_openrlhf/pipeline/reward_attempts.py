"""Gives up on prompts that cannot be scored (asyncio)."""

from __future__ import annotations

from collections import Counter

from dapo_openrlhf.pipeline.ports import GroupError, RewardScorer
from dapo_openrlhf.types import Prompt, Score


class LimitedAttempts:
    """A ``RewardScorer`` whose errors become permanent when a prompt has failed too often in a row.

    An error says nothing about the answer, so the prompt is tried again; one that failed every time would be tried for
    ever, so it is dropped with the reason of the last error.
    """

    def __init__(self, scorer: RewardScorer, *, most: int) -> None:
        """``most``: number of failures in a row, at least 1, after which a prompt is given up."""
        self._scorer = scorer
        self._most = most
        self._failures: Counter[int] = Counter()  # by prompt id

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses behind the handle ``texts``. Raises :class:`GroupError`."""
        try:
            scores = await self._scorer.score(texts, prompt)
        except GroupError as error:
            self._failures[prompt.id] += 1
            if (failures := self._failures[prompt.id]) < self._most:
                raise
            message = f"{error}; prompt {prompt.id} is dropped after {failures} failures in a row (reward.max_attempts)"
            raise GroupError(error.reason, message, permanent=True) from error
        self._failures.pop(prompt.id, None)
        return scores
