"""Giving up on prompts that cannot be scored (asyncio)."""

from __future__ import annotations

from collections import Counter

from dapo_openrlhf.pipeline.ports import GroupError, RewardScorer
from dapo_openrlhf.types import Prompt, Score


class LimitedAttempts:
    """A ``RewardScorer`` whose errors become permanent when a prompt has failed too often in a row.

    An error says nothing about the answer, so the prompt is tried again; one that fails time after time would circle
    for ever, and is dropped with the last error's reason.
    """

    def __init__(self, scorer: RewardScorer, *, most: int) -> None:
        """``most``: failures in a row, at least 1, the last of which is final."""
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
