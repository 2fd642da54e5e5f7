"""Gives up on prompts that cannot be scored (asyncio)."""

from __future__ import annotations

from collections import Counter

from dapo_openrlhf.pipeline.ports import GroupError, RewardScorer
from dapo_openrlhf.types import Prompt, Score


class Attempts:
    """Counts how often in a row each prompt has failed.

    An error says nothing about the answer, so the prompt is tried again; one that failed every time would be tried for
    ever, so it is dropped with the reason of the last error.
    """

    def __init__(self, most: int) -> None:
        """``most``: number of failures in a row, at least 1, after which a prompt is given up."""
        self._most = most
        self._failures: Counter[int] = Counter()  # by prompt id

    def failed(self, prompt: Prompt, error: GroupError) -> GroupError:
        """Count a failure; returns the error to raise, which is permanent the last time."""
        self._failures[prompt.id] += 1
        if (failures := self._failures[prompt.id]) < self._most:
            return error
        message = f"{error}; prompt {prompt.id} is dropped after {failures} failures in a row (reward.max_attempts)"
        return GroupError(error.reason, message, permanent=True)

    def succeeded(self, prompt: Prompt) -> None:
        """Start afresh with a prompt."""
        self._failures.pop(prompt.id, None)


class LimitedAttempts:
    """A ``RewardScorer`` whose errors become permanent when a prompt has failed too often in a row."""

    def __init__(self, scorer: RewardScorer, *, most: int) -> None:
        """``most``: see :class:`Attempts`."""
        self._scorer = scorer
        self._attempts = Attempts(most)

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses behind the handle ``texts``. Raises :class:`GroupError`."""
        try:
            scores = await self._scorer.score(texts, prompt)
        except GroupError as error:
            raise self._attempts.failed(prompt, error) from error.__cause__
        self._attempts.succeeded(prompt)
        return scores
