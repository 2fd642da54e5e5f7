"""Held-out accuracy on the pipeline's engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from fakes import EVALUATION, HANG, FakeEngine, FakeGroup, FakeScorer, FakeTexts, all_right, problems

from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.evaluation import Evaluation, ProblemResult, Response
from dapo_openrlhf.pipeline.evaluator import EvaluationFailed, Evaluator
from dapo_openrlhf.pipeline.ports import EnvironmentFault, GroupError, Sampling
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Prompt


def evaluator(
    engines: list[FakeEngine],
    scorer: FakeScorer,
    *,
    count: int,
    samples: int,
    texts: FakeTexts | None = None,
    concurrency: int = 100,
    on_answered: Callable[[ProblemResult], None] = lambda result: None,
) -> Evaluator:
    return Evaluator(
        problems=problems(count),
        sampler=Sampler(
            engines=EnginePool(engines),
            sampling=Sampling(n=samples, max_new_tokens=100, temperature=1.0, top_p=0.7),
            timeout=60.0,
        ),
        scorer=scorer,
        texts=texts,
        concurrency=concurrency,
        on_answered=on_answered,
    )


def by_problem(group: FakeGroup) -> tuple[bool, ...]:
    """Problem p is answered rightly p times of four."""
    return tuple(index < group.prompt.id % 10 for index in range(4))


def once(error: GroupError, problem: int) -> Callable[[Prompt], GroupError | None]:
    """A fault of the first attempt at one problem."""
    left = [error]
    return lambda prompt: left.pop() if prompt.id == EVALUATION + problem and left else None


def test_accuracy_is_the_mean_over_all_responses() -> None:
    engines = [FakeEngine(index, samples=4) for index in range(2)]
    measured = run_virtual(evaluator(engines, FakeScorer(pattern=by_problem), count=4, samples=4).measure())
    assert measured.accuracy.value == (0 + 1 + 2 + 3) / 16
    assert [result.right for result in measured.results] == [0, 1, 2, 3]
    assert (len(measured.results), len(measured.responses), measured.errors) == (4, 16, 0)
    assert measured.seconds == pytest.approx(1.0)
    answered = sorted(group.prompt.id for engine in engines for group in engine.made)
    assert answered == [problem.id for problem in problems(4)]


def test_problems_are_spread_over_the_engines_and_answered_together() -> None:
    async def main() -> float:
        engines = [FakeEngine(index, latency=lambda: 10.0) for index in range(3)]
        await evaluator(engines, FakeScorer(), count=9, samples=2).measure()
        assert [len(engine.made) for engine in engines] == [3, 3, 3]
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(10.0)


def test_no_more_problems_than_the_engines_hold_are_worked_on_at_once() -> None:
    """Of seven problems, two at a time, each 50 s of the 60 s that it may take: none runs out of time in a queue."""
    engine = FakeEngine(latency=lambda: 50.0)
    measured = run_virtual(evaluator([engine], FakeScorer(), count=7, samples=2, concurrency=2).measure())
    assert (measured.errors, measured.seconds) == (0, pytest.approx(200.0))
    assert max(sum(a.started <= b.started < a.ended for a in engine.made) for b in engine.made) == 2


def test_every_result_is_told_once_when_it_comes_errors_too() -> None:
    """Three problems of 1, 2 and 3 s; the second one never gets a verdict."""
    told: list[tuple[float, int, int]] = []
    seconds = iter([1.0, 2.0, 3.0])
    permanent = GroupError("prompt_too_long", "900 tokens", permanent=True)

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        measuring = evaluator(
            [FakeEngine(latency=lambda: next(seconds), fault=once(permanent, 1))],
            FakeScorer(),
            count=3,
            samples=2,
            on_answered=lambda result: told.append((clock(), result.problem.id - EVALUATION, result.judged)),
        )
        await measuring.measure()

    run_virtual(main())
    assert told == [(1.0, 0, 2), (2.0, 1, 0), (3.0, 2, 2)]


def test_a_second_measurement_starts_afresh() -> None:
    async def main() -> None:
        both = evaluator([FakeEngine(samples=4)], FakeScorer(pattern=by_problem), count=4, samples=4)
        first, second = await both.measure(), await both.measure()
        assert [result.right for result in first.results] == [result.right for result in second.results]

    run_virtual(main())


def test_a_response_comes_with_its_text_answer_verdict_and_length() -> None:
    engine = FakeEngine(samples=4, max_length=3)
    texts = FakeTexts(answers=lambda group: ["7", "7.", "8", ""])
    measured = run_virtual(
        evaluator(
            [engine],
            FakeScorer(pattern=by_problem, answers=lambda group: ["7", "7", "8", None]),
            count=3,
            samples=4,
            texts=texts,
        ).measure()
    )
    responses = measured.results[2].responses
    assert [response.text for response in responses] == [f"Well.\nAnswer: {answer}" for answer in ("7", "7.", "8", "")]
    assert [response.answer for response in responses] == ["7", "7", "8", None]
    assert [response.correct for response in responses] == [True, True, False, False]
    (made,) = [group for group in engine.made if group.prompt.id == EVALUATION + 2]
    assert tuple(response.length for response in responses) == made.lengths
    assert [response.truncated for response in responses] == [length == 3 for length in made.lengths]


# ---------------------------------------------------------------- what cannot be judged


@pytest.mark.parametrize("fails", ["engine", "scorer"])
def test_what_fails_once_is_tried_again(fails: str) -> None:
    fault = once(GroupError("engine_error", "out of cache"), 1)
    engine = FakeEngine(fault=fault) if fails == "engine" else FakeEngine()
    scorer = FakeScorer() if fails == "engine" else FakeScorer(fault=lambda group: fault(group.prompt))
    measured = run_virtual(evaluator([engine], scorer, count=3, samples=2).measure())
    assert measured.errors == 0
    assert len(engine.made) == (4 if fails == "engine" else 3), "a response is judged again, not drawn again"


@pytest.mark.parametrize(("blameless", "errors"), [(True, 0), (False, 2)])
def test_what_other_problems_do_to_an_environment_is_not_held_against_one(blameless: bool, errors: int) -> None:
    ends = iter([EnvironmentFault("environment_died", "exited with status 3", blameless=blameless)] * 2)
    engine = FakeEngine(fault=lambda prompt: next(ends, None) if prompt.id == EVALUATION else None)
    assert run_virtual(evaluator([engine], FakeScorer(), count=2, samples=2).measure()).errors == errors


@pytest.mark.parametrize(
    ("engine", "scorer", "texts", "attempts", "words"),
    [
        (
            FakeEngine(fault=lambda p: GroupError("engine_error", "out of cache") if p.id == EVALUATION else None),
            FakeScorer(pattern=all_right),
            FakeTexts(),
            2,
            "engine_error: out of cache",
        ),
        (
            FakeEngine(
                fault=lambda p: (
                    GroupError("prompt_too_long", "900 tokens", permanent=True) if p.id == EVALUATION else None
                )
            ),
            FakeScorer(pattern=all_right),
            FakeTexts(),
            1,
            "prompt_too_long: 900 tokens",
        ),
        (
            FakeEngine(fault=lambda p: HANG if p.id == EVALUATION else None),
            FakeScorer(pattern=all_right),
            FakeTexts(),
            2,
            "generate_timeout: engine 0 did not finish prompt",
        ),
        (
            FakeEngine(),
            FakeScorer(
                pattern=all_right,
                fault=lambda group: (
                    GroupError("reward_error", "no verifier") if group.prompt.id == EVALUATION else None
                ),
            ),
            FakeTexts(),
            1,
            "reward_error: no verifier",
        ),
        (
            FakeEngine(),
            FakeScorer(pattern=all_right),
            FakeTexts(fault=lambda group: GroupError("texts_lost", "gone") if group.prompt.id == EVALUATION else None),
            1,
            "texts_lost: gone",
        ),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_never_wrong(
    engine: FakeEngine, scorer: FakeScorer, texts: FakeTexts, attempts: int, words: str
) -> None:
    measured = run_virtual(evaluator([engine], scorer, count=3, samples=2, texts=texts).measure())
    failed, *judged = measured.results
    assert [response.correct for response in failed.responses] == [None, None]
    assert all(response.error.startswith(words) for response in failed.responses)
    assert all(not response.error for result in judged for response in result.responses)
    assert measured.errors == 2
    assert (measured.accuracy.value, measured.accuracy.problems) == (1.0, 2)
    assert len([group for group in engine.made if group.prompt.id == EVALUATION]) == attempts
    assert not engine.running


def test_an_evaluation_without_any_verdict_is_an_error_that_says_why() -> None:
    engine = FakeEngine(fault=lambda prompt: GroupError("engine_error", "out of cache"))
    with pytest.raises(EvaluationFailed, match=r"none of 6 responses .* 6 x engine_error: out of cache"):
        run_virtual(evaluator([engine], FakeScorer(), count=3, samples=2).measure())
    assert not engine.running


# ---------------------------------------------------------------- estimates


def result(answers: Sequence[str | None], verdicts: Sequence[bool | None], problem: int = 0) -> ProblemResult:
    responses = (Response(answer=a, correct=v) for a, v in zip(answers, verdicts, strict=True))
    return ProblemResult(problem=problems(problem + 1)[-1], responses=tuple(responses))


def measured_of(*results: ProblemResult, samples: int = 4, with_texts: bool = True) -> Evaluation:
    return Evaluation(results=results, samples=samples, seconds=1.0, with_texts=with_texts)


def test_estimates_are_over_the_judged_responses() -> None:
    """The first problem has 1 of 4 right, the second 2 of 2, the third was never judged.

    avg: (1/4 + 1)/2. pass@2: (1/2 + 1)/2. pass@4 and maj@4 are of the first alone; there one right answer and two equal
    wrong ones stand against each other: maj@4 is 0; of pairs, 1 of 6 is right-and-silent, 2 of 6 are ties: maj@2 is
    (1/6 + 2/6/2 + 1)/2.
    """
    measured = measured_of(
        result(["5", "6", "6", None], [True, False, False, False]),
        result(["5", "5", None, None], [True, True, None, None], 1),
        result([None] * 4, [None] * 4, 2),
    )
    estimates = measured.estimates()
    assert list(estimates) == ["avg@4", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert estimates["avg@4"].value == estimates["pass@1"].value == 0.625
    assert (estimates["pass@2"].value, estimates["pass@2"].problems) == (0.75, 2)
    assert (estimates["pass@4"].value, estimates["pass@4"].problems) == (1.0, 1)
    assert estimates["maj@2"].value == pytest.approx((1 / 6 + 1 / 6 + 1) / 2)
    assert (estimates["maj@4"].value, estimates["maj@4"].problems) == (0.0, 1)
    assert measured.errors == 6


def test_right_answers_agree_however_they_are_written() -> None:
    assert result(["1/2", "0.5", "3", "3"], [True, True, False, False]).majority(4) == 0.5


def test_without_texts_there_is_no_majority() -> None:
    measured = measured_of(result([None] * 4, [True] * 4), with_texts=False)
    assert list(measured.estimates()) == ["avg@4", "pass@1", "pass@2", "pass@4"]
    with pytest.raises(ValueError, match="texts"):
        measured.majority_at(2)
