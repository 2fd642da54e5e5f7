"""Held-out accuracy on the pipeline's own engines and reward workers (layer 2: asyncio)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dapo_openrlhf.engine_pool import EnginePool
from dapo_openrlhf.ports import RewardScorer, Sampling
from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """avg@n over a problem set."""

    accuracy: float
    """Mean share of right responses, 0 to 1."""
    problems: int
    responses: int


class Evaluator:
    """Answers every problem n times and scores the answers. A problem that cannot be scored ends the run."""

    def __init__(
        self,
        *,
        problems: Sequence[Prompt],
        engines: EnginePool,
        scorer: RewardScorer,
        sampling: Sampling,
        generate_timeout: float,
    ) -> None:
        self._problems = problems
        self._engines = engines
        self._scorer = scorer
        self._sampling = sampling
        self._generate_timeout = generate_timeout
        self._serial = itertools.count()

    async def measure(self) -> Accuracy:
        """Evaluate with the weights that are live now. Raises an exception group with the first ``GroupError``."""
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(self._right_answers(problem)) for problem in self._problems]
        responses = self._sampling.n * len(self._problems)
        return Accuracy(
            accuracy=sum(answer.result() for answer in answers) / responses,
            problems=len(self._problems),
            responses=responses,
        )

    async def _right_answers(self, problem: Prompt) -> int:
        request = f"problem {next(self._serial)}"
        generation = await self._engines.generate(request, problem, self._sampling, self._generate_timeout)
        scores = await self._scorer.score(generation.texts, problem)
        return sum(score.correct for score in scores)
