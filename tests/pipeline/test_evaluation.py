"""Held-out accuracy on the pipeline's engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from fakes import EVALUATION, HANG, FakeEngine, FakeGroup, FakeScorer, FakeTexts, all_right, problems

from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.evaluation import Evaluation, Evaluations, ProblemResult, Response
from dapo_openrlhf.pipeline.evaluator import EvaluationFailed, Evaluator, ProblemSet, evaluated
from dapo_openrlhf.pipeline.ports import EnvironmentFault, GroupError, Sampling
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion, Prompt


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
        {"": problem_set(EnginePool(engines), count=count, samples=samples)},
        scorer=scorer,
        texts=texts,
        responses_at_once=concurrency * samples,
        on_answered=on_answered,
    )


def problem_set(engines: EnginePool, *, count: int, samples: int, temperature: float = 1.0) -> ProblemSet:
    sampling = Sampling(n=samples, max_new_tokens=100, temperature=temperature, top_p=0.7)
    return ProblemSet(problems=problems(count), sampler=Sampler(engines=engines, sampling=sampling, timeout=60.0))


async def first_of(measuring: Evaluator) -> Evaluation:
    return (await measuring.measure()).first


def by_problem(group: FakeGroup) -> tuple[bool, ...]:
    """Problem p is answered rightly p times of four."""
    return tuple(index < group.prompt.id % 10 for index in range(4))


def once(error: GroupError, problem: int) -> Callable[[Prompt], GroupError | None]:
    """A fault of the first attempt at one problem."""
    left = [error]
    return lambda prompt: left.pop() if prompt.id == EVALUATION + problem and left else None


def test_accuracy_is_the_mean_over_all_responses() -> None:
    engines = [FakeEngine(index, samples=4) for index in range(2)]
    measured = run_virtual(first_of(evaluator(engines, FakeScorer(pattern=by_problem), count=4, samples=4)))
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
    measured = run_virtual(first_of(evaluator([engine], FakeScorer(), count=7, samples=2, concurrency=2)))
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
        first, second = await first_of(both), await first_of(both)
        assert [result.right for result in first.results] == [result.right for result in second.results]

    run_virtual(main())


def test_a_response_comes_with_its_text_answer_verdict_and_length() -> None:
    engine = FakeEngine(samples=4, max_length=3)
    texts = FakeTexts(answers=lambda group: ["7", "7.", "8", ""])
    measured = run_virtual(
        first_of(
            evaluator(
                [engine],
                FakeScorer(pattern=by_problem, answers=lambda group: ["7", "7", "8", None]),
                count=3,
                samples=4,
                texts=texts,
            )
        )
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
    measured = run_virtual(first_of(evaluator([engine], scorer, count=3, samples=2)))
    assert measured.errors == 0
    assert len(engine.made) == (4 if fails == "engine" else 3), "a response is judged again, not drawn again"


@pytest.mark.parametrize(("blameless", "errors"), [(True, 0), (False, 2)])
def test_what_other_problems_do_to_an_environment_is_not_held_against_one(blameless: bool, errors: int) -> None:
    ends = iter([EnvironmentFault("environment_died", "exited with status 3", blameless=blameless)] * 2)
    engine = FakeEngine(fault=lambda prompt: next(ends, None) if prompt.id == EVALUATION else None)
    assert run_virtual(first_of(evaluator([engine], FakeScorer(), count=2, samples=2))).errors == errors


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
    measured = run_virtual(first_of(evaluator([engine], scorer, count=3, samples=2, texts=texts)))
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
        run_virtual(first_of(evaluator([engine], FakeScorer(), count=3, samples=2)))
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


# ---------------------------------------------------------------- several sets


class TwoSets:
    """The set a: three problems of two responses; the set b: two problems of four. Each response takes 10 s."""

    def __init__(self, *, responses_at_once: int = 100, scorer: FakeScorer | None = None) -> None:
        self.engines = {n: FakeEngine(samples=n, latency=lambda: 10.0) for n in (2, 4)}
        self._evaluator = Evaluator(
            {
                "a": problem_set(EnginePool([self.engines[2]]), count=3, samples=2),
                "b": problem_set(EnginePool([self.engines[4]]), count=2, samples=4),
            },
            scorer=scorer or FakeScorer(pattern=lambda group: (True, False, False, False)[: len(group.lengths)]),
            texts=None,
            responses_at_once=responses_at_once,
        )

    def measure(self) -> Evaluations:
        return run_virtual(self._evaluator.measure())

    @property
    def begun(self) -> list[tuple[float, int]]:
        """When each problem was begun, and its number of responses."""
        return sorted((group.started, n) for n, engine in self.engines.items() for group in engine.made)


def test_every_set_has_its_own_sampling_and_its_own_figures() -> None:
    measured = TwoSets().measure()
    assert [(key, len(one.results), one.samples) for key, one in measured.sets.items()] == [("a", 3, 2), ("b", 2, 4)]
    assert [one.accuracy.value for one in measured.sets.values()] == [0.5, 0.25]
    assert measured.first is measured.sets["a"]


def test_numbers_of_several_sets_are_the_first_ones_and_each_ones_by_name() -> None:
    right = ProblemResult(problem=Prompt(id=0, text="", label=""), responses=(Response(correct=True),))
    wrong = ProblemResult(problem=Prompt(id=1, text="", label=""), responses=(Response(correct=False),))
    a = Evaluation(results=(right, wrong), samples=1, seconds=1.0, with_texts=False)
    b = Evaluation(results=(right,), samples=1, seconds=1.0, with_texts=False)
    assert Evaluations(sets={"": a}).values() == {"avg@1": 0.5, "pass@1": 0.5}, "a single set is as it always was"
    assert Evaluations(sets={"a": a, "b": b}).values() == {
        "avg@1": 0.5,
        "pass@1": 0.5,
        **{"a/accuracy": 0.5, "a/avg@1": 0.5, "a/pass@1": 0.5},
        **{"b/accuracy": 1.0, "b/avg@1": 1.0, "b/pass@1": 1.0},
    }
    event = evaluated(Evaluations(sets={"a": a, "b": b}), step=3, version=PolicyVersion(3), seconds=2.0)
    assert (event.accuracy, event.problems, event.responses) == (0.5, 2, 2)
    assert [(name, one.accuracy, one.problems) for name, one in event.sets.items()] == [("a", 0.5, 2), ("b", 1.0, 1)]
    assert evaluated(Evaluations(sets={"": a}), step=3, version=PolicyVersion(3), seconds=2.0).sets == {}


def test_sets_share_the_room_in_their_order() -> None:
    """With four responses at once the last problem of a leaves too little room for the first of b."""
    sets = TwoSets(responses_at_once=4)
    measured = sets.measure()
    assert sets.begun == [(0.0, 2), (0.0, 2), (10.0, 2), (20.0, 4), (30.0, 4)]
    assert [one.seconds for one in measured.sets.values()] == [20.0, 20.0], "each from its own first problem"


def test_the_next_set_begins_while_the_last_answers_of_the_one_before_are_written() -> None:
    sets = TwoSets(responses_at_once=8)
    sets.measure()
    assert sets.begun == [(0.0, 2), (0.0, 2), (0.0, 2), (10.0, 4), (10.0, 4)]
    wider = TwoSets(responses_at_once=10)
    wider.measure()
    assert wider.begun == [(0.0, 2), (0.0, 2), (0.0, 2), (0.0, 4), (10.0, 4)]


def test_a_problem_with_more_responses_than_there_is_room_for_is_alone() -> None:
    sets = TwoSets(responses_at_once=1)
    sets.measure()
    assert [when for when, _ in sets.begun] == [0.0, 10.0, 20.0, 30.0, 40.0]


def test_the_set_of_which_nothing_could_be_judged_is_named() -> None:
    permanent = GroupError("reward_error", "no answer in row", permanent=True)
    scorer = FakeScorer(fault=lambda group: permanent if len(group.lengths) == 4 else None)
    with pytest.raises(EvaluationFailed, match=r"none of 8 responses of the evaluation of b .*: 8 x reward_error"):
        TwoSets(scorer=scorer).measure()
