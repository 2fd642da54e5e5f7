"""Accuracies of repeated answers: golden numbers, and every formula against counting."""

from __future__ import annotations

import importlib.util
import itertools
import random
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.pipeline.eval_metrics import (
    Estimate,
    maj_at_k,
    over_problems,
    paired_difference,
    pass_at_k,
    powers_of_two,
)
from dapo_openrlhf.pipeline.intervals import t_quantile

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (5, 2, 3, 9 / 10),  # 1 - C(3,3)/C(5,3) = 1 - 1/10
        (4, 0, 4, 0.0),
        (4, 3, 2, 1.0),  # two of four, three of them right: one is right for sure
        (10_000, 1, 1, 1e-4),
        (10_000, 1, 9_999, 0.9999),
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_counts_choices(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(choice) < c for choice in choices) / len(choices))


@pytest.mark.parametrize(
    ("right", "wrong", "abstained", "k", "expected"),
    [
        (2, [1], 0, 3, 1.0),
        (1, [1], 0, 2, 1 / 2),  # a tie of two
        (1, [1, 1], 0, 3, 1 / 3),
        (2, [2], 0, 2, 1 / 2),  # of 6 choices: right twice in 1, a tie in 4
        (2, [3], 0, 3, 3 / 10),  # right twice in C(2,2) C(3,1) = 3 of C(5,3) = 10 choices
        (1, [], 3, 2, 1 / 2),  # one vote is enough where the others abstain; 3 of 6 choices have it
        (0, [1], 3, 2, 0.0),
        (0, [], 2, 2, 0.0),
        (3, [2, 2, 1], 0, 1, 3 / 8),
        (3, [2, 2, 1], 0, 8, 1.0),
        (16, [1] * 16, 0, 32, 1.0),
    ],
)
def test_maj_at_k(right: int, wrong: list[int], abstained: int, k: int, expected: float) -> None:
    assert maj_at_k(right, wrong, abstained=abstained, k=k) == pytest.approx(expected, abs=1e-15)


def counted_majority(right: int, wrong: Sequence[int], abstained: int, k: int) -> float:
    answers = ["right"] * right + [f"wrong {i}" for i, size in enumerate(wrong) for _ in range(size)] + [""] * abstained
    total, choices = 0.0, 0
    for choice in itertools.combinations(answers, k):
        votes = Counter(answer for answer in choice if answer)
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += ("right" in top) / len(top) if top else 0.0
        choices += 1
    return total / choices


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    right=st.integers(0, 4), wrong=st.lists(st.integers(1, 4), max_size=4), abstained=st.integers(0, 3), data=st.data()
)
def test_maj_at_k_counts_choices(right: int, wrong: list[int], abstained: int, data: st.DataObject) -> None:
    n = right + sum(wrong) + abstained
    if n == 0 or n > 11:
        return
    k = data.draw(st.integers(1, n))
    exact = maj_at_k(right, wrong, abstained=abstained, k=k)
    assert exact == pytest.approx(counted_majority(right, wrong, abstained, k))


@pytest.mark.parametrize(("n", "k"), [(4, 0), (4, 5), (0, 1)])
def test_more_than_there_is_cannot_be_chosen(n: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} .* {n}"):
        pass_at_k(n, 0, k)
    with pytest.raises(ValueError, match=f"k = {k} .* {n}"):
        maj_at_k(n, [], abstained=0, k=k)


def test_powers_of_two_go_up_to_n() -> None:
    assert [powers_of_two(n) for n in (1, 2, 6, 32)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32]]


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.1871), (1, 0.01198, 0.29096), (7, 0.2435, 0.70314)])
def test_a_single_response_of_each_problem_has_the_interval_of_a_binomial(right: int, low: float, high: float) -> None:
    """Quantiles of Beta(x + 0.8, n - x + 0.8) with n = 15, worked out with scipy 1.17; at the ends 0 and 1 themselves."""
    estimate = over_problems([1.0] * right + [0.0] * (15 - right), [1] * 15)
    assert (estimate.value, estimate.problems) == (right / 15, 15)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-4)


def test_responses_count_for_more_if_they_do_not_repeat_each_other() -> None:
    """40 problems with 8 responses each, half of all right: as 40 coins, or as 320."""
    alike = over_problems([1.0] * 20 + [0.0] * 20, [8] * 40)
    apart = over_problems([0.5] * 40, [8] * 40)
    assert (alike.low, alike.high) == pytest.approx((0.35, 0.65), abs=0.01)
    assert (apart.low, apart.high) == pytest.approx((0.445, 0.555), abs=0.01)


def test_the_interval_stays_within_what_an_accuracy_can_be() -> None:
    assert over_problems([0.0] * 30, [8] * 30).low == 0.0
    assert 0.02 < over_problems([0.0] * 30, [8] * 30).high < 0.116  # between 1 - 0.025^(1/240) and 1 - 0.025^(1/30)
    assert over_problems([1.0] * 30, [8] * 30).high == 1.0
    assert over_problems([1.0] * 30, [8] * 30).low == pytest.approx(1 - over_problems([0.0] * 30, [8] * 30).high)
    one = over_problems([0.25], [4])
    assert 0.0 < one.low < 0.05 and 0.75 < one.high < 1.0
    with pytest.raises(ValueError, match="no problem"):
        over_problems([], [])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=40), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_an_interval_has_a_width_and_holds_the_mean(rows: list[tuple[int, int]], k: int) -> None:
    counted = [(min(right, n), n) for right, n in rows if n >= k]
    if not counted:
        return
    estimate = over_problems([pass_at_k(n, right, k) for right, n in counted], [n / k for _, n in counted])
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.high - estimate.low > 1e-4


def test_the_interval_of_a_difference_by_hand() -> None:
    """Ten problems of 4 responses, all better by 1/4, and half a problem worse by as much: mean 2.5 / 11 = 0.22727,
    variance 11 / 16 / 11 - 0.22727^2 = 0.010847, over 10: 0.032935 squared; t of 10 degrees of freedom 2.2281."""
    estimate = paired_difference([0.25] * 10, [4] * 10)
    assert (estimate.value, estimate.problems) == (0.25, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.22727 - 0.07338, 0.22727 + 0.07338), abs=1e-4)


def test_few_problems_have_no_interval_of_their_difference() -> None:
    assert paired_difference([0.25] * 4, [4] * 4) == Estimate(value=0.25, low=-1.0, high=1.0, problems=4)
    assert paired_difference([0.0] * 5, [1] * 5).low < -0.2
    with pytest.raises(ValueError, match="no problem"):
        paired_difference([], [])


def test_many_problems_have_the_normal_interval_of_their_difference() -> None:
    differences = [((7 * i) % 11 - 5) / 10 for i in range(220)]
    estimate = paired_difference(differences, [10] * 220)
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx((-half, half), abs=0.02 * half)


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 2.5706), (10, 2.2281), (30, 2.0423), (100, 1.9840)])
def test_students_quantile(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, abs=0.003)


@pytest.mark.parametrize(
    ("mean", "correlation", "problems", "responses"),
    [(0.1, 0.3, 30, 4), (0.1, 1.0, 30, 2), (0.5, 0.1, 15, 4)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    mean: float, correlation: float, problems: int, responses: int
) -> None:
    """80 evaluations of seeded chance; 95 % of 80 is 76, with a standard deviation of 1.9."""
    chance = random.Random(f"{mean}/{correlation}/{problems}")
    size = (1 - correlation) / correlation

    def right() -> int:
        rate = chance.betavariate(mean * size, (1 - mean) * size) if size else float(chance.random() < mean)
        return sum(chance.random() < rate for _ in range(responses))

    held = 0
    for _ in range(80):
        estimate = over_problems([right() / responses for _ in range(problems)], [responses] * problems)
        held += estimate.low <= mean <= estimate.high
    assert 71 <= held <= 80


@pytest.mark.parametrize("counts", [[1, 0, 4, 2, 0] * 6, [0, 0, 1] * 5, [4] * 12])
def test_the_simulated_intervals_are_those_of_an_evaluation(counts: list[int]) -> None:
    spec = importlib.util.spec_from_file_location("coverage", SCRIPTS / "interval_coverage.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["coverage"] = script  # where dataclasses look for it
    try:
        spec.loader.exec_module(script)
    finally:
        del sys.modules["coverage"]
    np = script.np
    seen = np.array([[float(counts.count(right)) for right in range(5)]])
    estimate = over_problems([count / 4 for count in counts], [4] * len(counts))

    def held(mean: float) -> bool:
        drawn = script.Evaluations(histogram=seen, values=np.arange(5) / 4, trials=4, truth=mean)
        return bool(script.beta_binomial(drawn, [script.OURS])[0][0])

    assert [held(estimate.low * 0.99), held(estimate.low * 1.01)] == [False, True]
    if estimate.high < 1:
        assert [held(estimate.high * 0.99), held(estimate.high * 1.01)] == [True, False]
