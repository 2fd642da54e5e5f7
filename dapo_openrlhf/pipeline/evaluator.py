"""Measures held-out accuracy on the pipeline's own engines and reward workers (asyncio)."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dapo_openrlhf.pipeline.engine_pool import Sampler
from dapo_openrlhf.pipeline.evaluation import Evaluation, Evaluations, ProblemResult, Response
from dapo_openrlhf.pipeline.events import Evaluated, SetEvaluated
from dapo_openrlhf.pipeline.ports import ENGINE_DIED, EnvironmentFault, GroupError, ResponseTexts, RewardScorer
from dapo_openrlhf.pipeline.room import Room
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Score, Transcript

T = TypeVar("T")

SERIAL = itertools.count()
"""Numbers of requests, which no two evaluations of a process share: an engine may still be ending those of one that was
given up."""

MOST_DEATHS = 5
"""Number of engines that may die on a problem before it counts as an error; by then the pool knows whether the problem
is the cause."""


class EvaluationFailed(RuntimeError):
    """None of the responses could be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSet:
    """Problems with the sampling of the responses to them."""

    problems: Sequence[Prompt]
    sampler: Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """The responses to a problem, and when they were begun and complete, in seconds of the event loop."""

    result: ProblemResult
    begun: float
    ended: float


class Evaluator:
    """Has every problem of every set answered n times and the answers scored. What fails is tried once more."""

    def __init__(
        self,
        sets: Mapping[str, ProblemSet],
        *,
        scorer: RewardScorer,
        texts: ResponseTexts | None,
        responses_at_once: int,
        on_answered: Callable[[ProblemResult], None] = lambda result: None,
    ) -> None:
        """``sets``: see :class:`Evaluations`. ``texts``: None leaves texts out. ``responses_at_once``: number of responses
        in progress at once, at least 1. ``on_answered`` is called with every problem's result as it comes.

        With more responses than the engines hold, the time-out of a problem would run while it waits for its turn.
        """
        self._sets = sets
        self._scorer = scorer
        self._texts = texts
        self._responses_at_once = responses_at_once
        self._on_answered = on_answered

    async def measure(self) -> Evaluations:
        """Evaluate with the weights that are live now. Raises :class:`EvaluationFailed`.

        The sets' problems are begun in order, so that engines go over to the next set while the last answers to the one
        before are still being written.
        """
        room = Room(self._responses_at_once)
        async with asyncio.TaskGroup() as tasks:
            answering = {
                key: [tasks.create_task(self._answer(problem, one.sampler, room)) for problem in one.problems]
                for key, one in self._sets.items()
            }
        measured = {
            key: self._evaluation([task.result() for task in answers], self._sets[key].sampler)
            for key, answers in answering.items()
        }
        for key, one in measured.items():
            _refuse_unjudged(key, one)
        return Evaluations(sets=measured)

    def _evaluation(self, answered: Sequence[_Answered], sampler: Sampler) -> Evaluation:
        return Evaluation(
            results=tuple(one.result for one in answered),
            samples=sampler.sampling.n,
            seconds=max(one.ended for one in answered) - min(one.begun for one in answered),
            with_texts=self._texts is not None,
        )

    async def _answer(self, problem: Prompt, sampler: Sampler, room: Room) -> _Answered:
        clock = asyncio.get_running_loop().time
        async with room.taken(sampler.sampling.n):
            begun = clock()
            result = ProblemResult(problem=problem, responses=await self._respond(problem, sampler))
        self._on_answered(result)
        return _Answered(result=result, begun=begun, ended=clock())

    async def _respond(self, problem: Prompt, sampler: Sampler) -> tuple[Response, ...]:
        try:
            generation = await _again(lambda: sampler.sample(f"problem {next(SERIAL)}", problem, 0))
        except GroupError as error:
            return (Response(error=_reason(error)),) * sampler.sampling.n
        return await self._score(problem, generation)

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


def _refuse_unjudged(key: str, measured: Evaluation) -> None:
    if measured.errors == len(measured.responses):
        reasons = Counter(response.error for response in measured.responses)
        words = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        of = f"the evaluation of {key}" if key else "the evaluation"
        raise EvaluationFailed(f"none of {measured.errors} responses of {of} could be judged: {words}")


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


def evaluated(measured: Evaluations, *, step: int, version: PolicyVersion, seconds: float) -> Evaluated:
    """The event of an evaluation that took so long, of the weights after ``step`` steps."""
    figures = {key: _figures(one) for key, one in measured.sets.items()}
    first = next(iter(figures.values()))
    return Evaluated(
        step=step,
        version=version,
        accuracy=first.accuracy,
        problems=first.problems,
        responses=first.responses,
        errors=first.errors,
        estimates=measured.values(),
        sets={key: one for key, one in figures.items() if key},
        seconds=seconds,
        measured=measured,
    )


def _figures(one: Evaluation) -> SetEvaluated:
    return SetEvaluated(
        accuracy=one.accuracy.value, problems=len(one.results), responses=len(one.responses), errors=one.errors
    )
