"""Accuracies of repeated answers: golden numbers, and every formula against counting."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.eval_metrics import (
    Estimate,
    maj_at_k,
    over_problems,
    paired_bootstrap,
    pass_at_k,
    powers_of_two,
)


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


def test_the_interval_over_problems() -> None:
    """Mean 1/2; squared deviations add up to 1/2; standard error sqrt(1/2 / (4 * 3)) = 0.2041; 1.96 of it: 0.4001."""
    estimate = over_problems([1.0, 0.0, 0.5, 0.5])
    assert (estimate.value, estimate.problems) == (0.5, 4)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - 0.40008, 0.5 + 0.40008), abs=1e-5)


def test_the_interval_stays_within_what_an_accuracy_can_be() -> None:
    assert over_problems([1.0, 1.0, 1.0, 0.0]).high == 1.0
    assert over_problems([0.0, 0.0, 0.0, 1.0]).low == 0.0
    assert over_problems([0.25]) == Estimate(value=0.25, low=0.0, high=1.0, problems=1)
    with pytest.raises(ValueError, match="no problem"):
        over_problems([])


def test_the_paired_bootstrap() -> None:
    """Two problems, one better by one: a resample has the mean 0 or 1 in a quarter of the cases each."""
    assert paired_bootstrap([0.0, 1.0]) == Estimate(value=0.5, low=0.0, high=1.0, problems=2)
    assert paired_bootstrap([0.25] * 10) == Estimate(value=0.25, low=0.25, high=0.25, problems=10)
    with pytest.raises(ValueError, match="no problem"):
        paired_bootstrap([])


def test_the_paired_bootstrap_repeats_and_agrees_with_the_normal_interval_on_many_problems() -> None:
    differences = [((7 * i) % 11 - 5) / 10 for i in range(220)]
    estimate = paired_bootstrap(differences)
    assert estimate == paired_bootstrap(differences)
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx((-half, half), abs=0.05 * half)


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.088097), (1.0, 0.911903, 1.0)])
def test_unanimous_problems_still_have_an_interval(value: float, low: float, high: float) -> None:
    """Clopper-Pearson with 0 of 40: the upper bound solves (1 - p)^40 = 0.025, so p = 1 - 0.025^(1/40) = 0.088097."""
    estimate = over_problems([value] * 40)
    assert (estimate.value, estimate.low, estimate.high) == (
        value,
        pytest.approx(low, abs=1e-5),
        pytest.approx(high, abs=1e-5),
    )
