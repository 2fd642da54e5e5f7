"""Shows a few responses of each rollout step to whoever reports on the run (asyncio)."""

from __future__ import annotations

import contextlib

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Event, ResponseSampled, StepDone
from dapo_openrlhf.pipeline.ports import GroupError, ResponseTexts, RewardScorer
from dapo_openrlhf.types import Generation, Prompt, Score


class SampledScorer:
    """A ``GroupScorer`` that emits one response of each of the first groups that are scored in a step.

    A text that does not arrive costs its group nothing.
    """

    def __init__(self, scorer: RewardScorer, *, texts: ResponseTexts, per_step: int, log: EventLog) -> None:
        """``scorer`` judges groups that no environment has scored. ``per_step``: number of groups of a step, 0 or more. ``texts`` should give up within seconds."""
        self._scorer = scorer
        self._texts = texts
        self._per_step = self._left = per_step
        self._log = log
        log.listen(self._hear)

    async def score(self, generation: Generation, prompt: Prompt) -> tuple[Score, ...]:
        """The scores of an environment, or else of the rewards. Raises :class:`GroupError`."""
        scores = generation.scores
        if scores is None:
            scores = await self._scorer.score(generation.texts, prompt)
        if self._left:
            self._left -= 1
            with contextlib.suppress(GroupError):
                self._emit((await self._texts.fetch(generation.texts))[0].text, scores[0], prompt)
        return scores

    def _emit(self, response: str, score: Score, prompt: Prompt) -> None:
        self._log.emit(
            ResponseSampled(
                prompt=prompt.id,
                correct=score.correct,
                reward=score.reward,
                answer=score.answer,
                prompt_text=prompt.text,
                label=prompt.label,
                response=response,
            )
        )

    def _hear(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._left = self._per_step
