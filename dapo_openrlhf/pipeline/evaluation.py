"""Held-out accuracy on the pipeline's own engines and reward workers (asyncio).

A response that could not be generated or judged is an error: counted apart, and never taken for a wrong answer. All
accuracies are over the judged responses.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dapo_openrlhf.pipeline.engine_pool import EnginePool
from dapo_openrlhf.pipeline.eval_metrics import Estimate, maj_at_k, over_problems, pass_at_k, powers_of_two
from dapo_openrlhf.pipeline.ports import ENGINE_DIED, GroupError, ResponseTexts, RewardScorer, Sampling
from dapo_openrlhf.types import Generation, Prompt, Score

T = TypeVar("T")

MOST_DEATHS = 5
"""Engines that may die under a problem before it is an error: by then the pool knows whether it is the problem's fault."""


class EvaluationFailed(RuntimeError):
    """Not one response could be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to a problem."""

    text: str = ""
    """Empty if it was not generated, or texts were not asked for."""
    answer: str | None = None
    """What the reward worker found in the text, evened out: the same for answers that are the same text or number."""
    correct: bool | None = None
    """None: it was not judged, for the reason in ``error``."""
    error: str = ""
    length: int = 0
    """Tokens."""
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """All answers to one problem."""

    problem: Prompt
    responses: tuple[Response, ...]

    @property
    def judged(self) -> int:
        """n: responses with a verdict."""
        return sum(response.correct is not None for response in self.responses)

    @property
    def right(self) -> int:
        """c: right responses."""
        return sum(response.correct is True for response in self.responses)

    def majority(self, k: int) -> float:
        """maj@k. Right responses agree with each other, wrong ones if their answers are the same text or number."""
        wrong = [response.answer for response in self.responses if response.correct is False]
        votes = Counter(answer for answer in wrong if answer is not None)
        return maj_at_k(self.right, tuple(votes.values()), abstained=wrong.count(None), k=k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One measurement; some response is judged."""

    results: tuple[ProblemResult, ...]
    """In the order of the problem set."""
    samples: int
    """Responses asked for, of each problem."""
    seconds: float
    """Start of workers not included."""
    with_texts: bool

    @property
    def accuracy(self) -> Estimate:
        """avg@n over the problems with a judged response."""
        return self._mean(lambda result: result.right / result.judged, k=1)

    def pass_at(self, k: int) -> Estimate:
        """pass@k over the problems with k judged responses."""
        return self._mean(lambda result: pass_at_k(result.judged, result.right, k), k=k)

    def majority_at(self, k: int) -> Estimate:
        """maj@k over the problems with k judged responses; needs texts."""
        if not self.with_texts:
            raise ValueError("a majority needs the responses' texts")
        return self._mean(lambda result: result.majority(k), k=k)

    def estimates(self) -> dict[str, Estimate]:
        """avg@n, and pass@k and maj@k for the powers of two up to n that enough responses were judged for."""
        named = {f"avg@{self.samples}": self.accuracy}
        most = max(result.judged for result in self.results)
        ks = [k for k in powers_of_two(self.samples) if k <= most]
        named |= {f"pass@{k}": self.pass_at(k) for k in ks}
        if self.with_texts:
            named |= {f"maj@{k}": self.majority_at(k) for k in ks if k > 1}
        return named

    @property
    def responses(self) -> list[Response]:
        """All of them, problem by problem."""
        return [response for result in self.results for response in result.responses]

    @property
    def errors(self) -> int:
        """Responses that were not judged."""
        return sum(response.correct is None for response in self.responses)

    def _mean(self, value: Callable[[ProblemResult], float], *, k: int) -> Estimate:
        """Over the problems with at least k judged responses."""
        covered = [result for result in self.results if result.judged >= k]
        return over_problems([value(result) for result in covered], [result.judged / k for result in covered])


class Evaluator:
    """Answers every problem n times and has the answers judged. What fails is tried once more."""

    def __init__(
        self,
        *,
        problems: Sequence[Prompt],
        engines: EnginePool,
        scorer: RewardScorer,
        texts: ResponseTexts | None,
        sampling: Sampling,
        generate_timeout: float,
        concurrency: int,
        on_answered: Callable[[ProblemResult], None] = lambda result: None,
    ) -> None:
        """``texts``: None does without them. ``concurrency``: problems that are worked on at once, at least 1.
        ``on_answered`` is called with every problem's result as it comes.

        With more problems in the engines than they hold, a problem's ``generate_timeout`` would run while it waits.
        """
        self._problems = problems
        self._engines = engines
        self._scorer = scorer
        self._texts = texts
        self._sampling = sampling
        self._generate_timeout = generate_timeout
        self._serial = itertools.count()
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
            samples=self._sampling.n,
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
            return (Response(error=_reason(error)),) * self._sampling.n
        return await self._judge(problem, generation)

    async def _generate(self, problem: Prompt) -> Generation:
        request = f"problem {next(self._serial)}"
        return await self._engines.generate(request, problem, self._sampling, self._generate_timeout)

    async def _judge(self, problem: Prompt, generation: Generation) -> tuple[Response, ...]:
        texts: Sequence[str] = ("",) * len(generation.lengths)
        scores: Sequence[Score | None] = (None,) * len(generation.lengths)
        reason = ""
        try:
            if self._texts is not None:
                texts = await self._texts.fetch(generation.texts)
            scores = await _again(lambda: self._scorer.score(generation.texts, problem))
        except GroupError as error:
            reason = _reason(error)
        return tuple(
            Response(
                text=text,
                answer=None if score is None else score.answer,
                correct=None if score is None else score.correct,
                error=reason,
                length=length,
                truncated=truncated,
            )
            for text, score, length, truncated in zip(
                texts, scores, generation.lengths, generation.truncated, strict=True
            )
        )


def _reason(error: GroupError) -> str:
    return f"{error.reason}: {error}"


async def _again(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try once more after a :class:`GroupError` that may pass, and more often when it is the engine that died."""
    failures = deaths = 0
    while True:
        try:
            return await attempt()
        except GroupError as error:
            died = error.reason == ENGINE_DIED
            failures, deaths = failures + (not died), deaths + died
            if error.permanent or failures == 2 or deaths == MOST_DEATHS:
                raise
