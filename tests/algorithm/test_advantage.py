"""What each response of a group is credited with, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapo_openrlhf.algorithm.advantage import CREDITS, STD_EPSILON, group_norm, leave_one_out, mean_only, plain
from dapo_openrlhf.algorithm.choices import ESTIMATORS, EstimatorName


def test_one_right_of_four() -> None:
    # rewards 1, -1, -1, -1: mean = -2/4 = -0.5; centred 1.5, -0.5, -0.5, -0.5; sum of squares 2.25 + 3 * 0.25 = 3;
    # sample variance 3 / (4 - 1) = 1, so std = 1 and A = centred / (1 + 1e-9).
    # (The population's std would be sqrt(3/4) = 0.866 and give 1.732.)
    assert group_norm([1.0, -1.0, -1.0, -1.0]) == pytest.approx([1.5 / (1 + 1e-9), *[-0.5 / (1 + 1e-9)] * 3], rel=1e-12)


def test_two_responses() -> None:
    # rewards 1, -1: mean 0, sum of squares 2, variance 2 / (2 - 1) = 2, std = sqrt 2; A = +-1 / (sqrt 2 + 1e-9).
    expected = 1 / (math.sqrt(2) + 1e-9)
    assert group_norm([1.0, -1.0]) == pytest.approx([expected, -expected], rel=1e-12)


def test_shaped_rewards_of_three() -> None:
    # rewards 1, 0.5, -1.5 (right; right but long; wrong and long): mean 0, squares 1 + 0.25 + 2.25 = 3.5,
    # variance 3.5 / 2 = 1.75, std = 1.3228756555; A = (0.7559, 0.3780, -1.1339).
    std = math.sqrt(1.75)
    assert group_norm([1.0, 0.5, -1.5]) == pytest.approx([1 / std, 0.5 / std, -1.5 / std], rel=2e-6)


def test_tiny_differences_are_damped_by_epsilon() -> None:
    # rewards +-5e-10 around 0: std = sqrt(2) * 5e-10 = 7.07e-10, less than the epsilon of 1e-9;
    # A = 5e-10 / (7.07e-10 + 1e-9) = 0.2929, not 0.7071.
    assert STD_EPSILON == 1e-9
    assert group_norm([5e-10, -5e-10])[0] == pytest.approx(0.5 / (0.5 * math.sqrt(2) + 1), rel=1e-9)


def test_mean_only() -> None:
    # Dr. GRPO: rewards 1, 0.5, -1.5, -1: mean -0.25; no division by the spread.
    assert mean_only([1.0, 0.5, -1.5, -1.0]) == pytest.approx([1.25, 0.75, -1.25, -0.75], rel=1e-12)


def test_leave_one_out() -> None:
    # RLOO: 1 - (0.5 - 1.5) / 2 = 1.5;  0.5 - (1 - 1.5) / 2 = 0.75;  -1.5 - (1 + 0.5) / 2 = -2.25.
    assert leave_one_out([1.0, 0.5, -1.5]) == pytest.approx([1.5, 0.75, -2.25], rel=1e-12)
    # Two responses: each against the other.
    assert leave_one_out([1.0, -1.0]) == pytest.approx([2.0, -2.0], rel=1e-12)


def test_plain_leaves_rewards_alone() -> None:
    assert plain([0.3]) == [0.3]
    assert plain([1.0, 1.0]) == [1.0, 1.0]


def test_every_estimator_has_its_credit() -> None:
    assert set(CREDITS) == set(ESTIMATORS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_smallest_group_an_estimator_names_is_the_smallest_it_takes(estimator: EstimatorName) -> None:
    smallest = ESTIMATORS[estimator].smallest_group
    assert len(CREDITS[estimator]([1.0] * smallest)) == smallest
    if smallest > 1:
        with pytest.raises(ValueError, match="at least 2 rewards"):
            CREDITS[estimator]([1.0] * (smallest - 1))


GROUP_RELATIVE = [group_norm, mean_only, leave_one_out]


@pytest.mark.parametrize("credit", GROUP_RELATIVE)
@given(reward=st.floats(-2, 2), size=st.integers(2, 64))
def test_equal_rewards_carry_no_gradient(
    credit: Callable[[Sequence[float]], list[float]], reward: float, size: int
) -> None:
    # Exactly 0, not a rounding error: an optimizer that divides by the gradient's size would blow 1e-10 up to 1.
    assert credit([reward] * size) == [0.0] * size


@pytest.mark.parametrize("credit", GROUP_RELATIVE)
@given(rewards=st.lists(st.floats(-2, 2), min_size=2, max_size=32))
def test_advantages_sum_to_zero_and_keep_the_order(
    credit: Callable[[Sequence[float]], list[float]], rewards: list[float]
) -> None:
    advantages = credit(rewards)
    assert math.fsum(advantages) == pytest.approx(0, abs=1e-6)
    by_reward = [advantage for _, advantage in sorted(zip(rewards, advantages, strict=True))]
    assert by_reward == sorted(by_reward)


@pytest.mark.parametrize("credit", GROUP_RELATIVE)
@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_less_than_two_rewards_are_refused(
    credit: Callable[[Sequence[float]], list[float]], rewards: list[float]
) -> None:
    with pytest.raises(ValueError, match=f"at least 2 rewards, got {len(rewards)}"):
        credit(rewards)
