"""Held-out accuracy on the pipeline's engines."""

from __future__ import annotations

import asyncio

import pytest
from fakes import HANG, FakeEngine, FakeGroup, FakeScorer, problems
from virtual_time import run_virtual

from dapo_openrlhf.engine_pool import EnginePool
from dapo_openrlhf.evaluation import Accuracy, Evaluator
from dapo_openrlhf.ports import GroupError, Sampling


def evaluator(engines: list[FakeEngine], scorer: FakeScorer, *, count: int, samples: int) -> Evaluator:
    return Evaluator(
        problems=problems(count),
        engines=EnginePool(engines),
        scorer=scorer,
        sampling=Sampling(n=samples, max_new_tokens=100, temperature=1.0, top_p=0.7),
        generate_timeout=60.0,
    )


def by_problem(group: FakeGroup) -> tuple[bool, ...]:
    """Problem p is answered rightly p times of four."""
    return tuple(index < group.prompt.id % 10 for index in range(4))


def test_accuracy_is_the_mean_over_all_responses() -> None:
    engines = [FakeEngine(index, samples=4) for index in range(2)]
    measured = run_virtual(evaluator(engines, FakeScorer(pattern=by_problem), count=4, samples=4).measure())
    assert measured == Accuracy(accuracy=(0 + 1 + 2 + 3) / 16, problems=4, responses=16)
    answered = sorted(group.prompt.id for engine in engines for group in engine.made)
    assert answered == [problem.id for problem in problems(4)]


def test_problems_are_spread_over_the_engines_and_answered_together() -> None:
    async def main() -> float:
        engines = [FakeEngine(index, latency=lambda: 10.0) for index in range(3)]
        await evaluator(engines, FakeScorer(), count=9, samples=2).measure()
        assert [len(engine.made) for engine in engines] == [3, 3, 3]
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(10.0)


def test_a_second_measurement_starts_afresh() -> None:
    async def main() -> None:
        both = evaluator([FakeEngine(samples=4)], FakeScorer(pattern=by_problem), count=4, samples=4)
        assert await both.measure() == await both.measure()

    run_virtual(main())


@pytest.mark.parametrize(
    ("engine", "scorer", "words"),
    [
        (
            FakeEngine(fault=lambda p: GroupError("engine_error", "out of cache")),
            FakeScorer(),
            "out of cache",
        ),
        (
            FakeEngine(),
            FakeScorer(fault=lambda group: GroupError("reward_error", "no verifier")),
            "no verifier",
        ),
        (FakeEngine(latency=lambda: HANG), FakeScorer(), "engine 0 did not finish prompt"),
    ],
)
def test_a_problem_that_cannot_be_scored_is_an_error_and_stops_the_others(
    engine: FakeEngine, scorer: FakeScorer, words: str
) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        run_virtual(evaluator([engine], scorer, count=3, samples=2).measure())
    assert raised.group_contains(GroupError, match=words)
    assert not engine.running
