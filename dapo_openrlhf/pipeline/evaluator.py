"""Measures held-out accuracy on the pipeline's own engines and reward workers (asyncio)."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from dapo_openrlhf.pipeline.engine_pool import Sampler
from dapo_openrlhf.pipeline.evaluation import Evaluation, ProblemResult, Response
from dapo_openrlhf.pipeline.ports import ENGINE_DIED, EnvironmentFault, GroupError, ResponseTexts, RewardScorer
from dapo_openrlhf.types import Generation, Prompt, Score, Transcript

T = TypeVar("T")

SERIAL = itertools.count()
"""Numbers of requests, which no two evaluations of a process share: an engine may still be ending those of one that was
given up."""

MOST_DEATHS = 5
"""Number of engines that may die on a problem before it counts as an error; by then the pool knows whether the problem
is the cause."""


class EvaluationFailed(RuntimeError):
    """None of the responses could be judged."""


class Evaluator:
    """Has every problem answered n times and the answers scored. What fails is tried once more."""

    def __init__(
        self,
        *,
        problems: Sequence[Prompt],
        sampler: Sampler,
        scorer: RewardScorer,
        texts: ResponseTexts | None,
        concurrency: int,
        on_answered: Callable[[ProblemResult], None] = lambda result: None,
    ) -> None:
        """``texts``: None leaves texts out. ``concurrency``: number of problems in progress at once, at least 1.
        ``on_answered`` is called with every problem's result as it comes.

        With a concurrency beyond what the engines hold, the time-out of a problem would run while it waits for its
        turn.
        """
        self._problems = problems
        self._sampler = sampler
        self._scorer = scorer
        self._texts = texts
        self._concurrency = concurrency
        self._on_answered = on_answered

    async def measure(self) -> Evaluation:
        """Evaluate with the weights that are live now. Raises :class:`EvaluationFailed`."""
        clock = asyncio.get_running_loop().time
        started = clock()
        room = asyncio.Semaphore(self._concurrency)
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(self._answer(problem, room)) for problem in self._problems]
        measured = Evaluation(
            results=tuple(answer.result() for answer in answers),
            samples=self._sampler.sampling.n,
            seconds=clock() - started,
            with_texts=self._texts is not None,
        )
        if measured.errors == len(measured.responses):
            reasons = Counter(response.error for response in measured.responses)
            words = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            raise EvaluationFailed(f"none of {measured.errors} responses of the evaluation could be judged: {words}")
        return measured

    async def _answer(self, problem: Prompt, room: asyncio.Semaphore) -> ProblemResult:
        async with room:
            result = ProblemResult(problem=problem, responses=await self._respond(problem))
        self._on_answered(result)
        return result

    async def _respond(self, problem: Prompt) -> tuple[Response, ...]:
        try:
            generation = await _again(lambda: self._generate(problem))
        except GroupError as error:
            return (Response(error=_reason(error)),) * self._sampler.sampling.n
        return await self._score(problem, generation)

    async def _generate(self, problem: Prompt) -> Generation:
        return await self._sampler.sample(f"problem {next(SERIAL)}", problem, 0)

    async def _score(self, problem: Prompt, generation: Generation) -> tuple[Response, ...]:
        texts: Sequence[Transcript] = (Transcript(text=""),) * len(generation.lengths)
        scores: Sequence[Score | None] = generation.scores or (None,) * len(generation.lengths)
        reason = ""
        try:
            if self._texts is not None:
                texts = await self._texts.fetch(generation.texts)
            if generation.scores is None:
                scores = await _again(lambda: self._scorer.score(generation.texts, problem))
        except GroupError as error:
            reason = _reason(error)
        return tuple(
            Response(
                text=written.text,
                segments=written.segments,
                answer=None if score is None else score.answer,
                correct=None if score is None else score.correct,
                error=reason,
                length=length,
                truncated=truncated,
            )
            for written, score, length, truncated in zip(
                texts, scores, generation.lengths, generation.truncated, strict=True
            )
        )


def _reason(error: GroupError) -> str:
    return f"{error.reason}: {error}"


async def _again(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try once more after a :class:`GroupError` that is not permanent, and more often when something else died under it."""
    failures = deaths = 0
    while True:
        try:
            return await attempt()
        except GroupError as error:
            died = error.reason == ENGINE_DIED or (isinstance(error, EnvironmentFault) and error.blameless)
            failures, deaths = failures + (not died), deaths + died
            if error.permanent or failures == 2 or deaths == MOST_DEATHS:
                raise
