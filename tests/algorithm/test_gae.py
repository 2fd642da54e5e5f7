"""Advantages of single tokens, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.algorithm.gae import gae, moments, token_rewards, whiten


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(values: Tensor) -> list[list[float]]:
    return [pytest.approx(row, abs=1e-12) for row in values.tolist()]


PRESENT = tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def test_credit_comes_at_the_last_token_and_kl_at_each() -> None:
    # Credits 1 and -1, coefficient 0.1; KL of the padding must not count.
    rewards = token_rewards(tensor([1.0, -1.0]), tensor([[1.0, 2.0, 3.0], [4.0, -5.0, 99.0]]), PRESENT, kl_coef=0.1)
    assert rewards.tolist() == rows(tensor([[-0.1, -0.2, 0.7], [-0.4, -0.5, 0.0]]))


def test_gae_by_hand() -> None:
    # gamma 0.9, lambda 0.5, so deltas decay by 0.45. Values 0.5, 1, 2; rewards 0, 0, 1.
    #   delta_2 = 1 - 2 = -1;  delta_1 = 0.9 * 2 - 1 = 0.8;  delta_0 = 0.9 * 1 - 0.5 = 0.4
    #   A_2 = -1;  A_1 = 0.8 - 0.45 = 0.35;  A_0 = 0.4 + 0.45 * 0.35 = 0.5575;  returns A + V = 1.0575, 1.35, 1
    # Second response, two tokens, rewards 0.2, -1, values 1, -2; what its padding holds, 9 and 7, is not its future.
    #   delta_1 = -1 + 2 = 1;  delta_0 = 0.2 + 0.9 * -2 - 1 = -2.6;  A = -2.6 + 0.45 = -2.15, 1;  returns -1.15, -1
    advantages, returns = gae(
        tensor([[0.0, 0.0, 1.0], [0.2, -1.0, 9.0]]),
        tensor([[0.5, 1.0, 2.0], [1.0, -2.0, 7.0]]),
        PRESENT,
        gamma=0.9,
        lambd=0.5,
    )
    assert advantages.tolist() == rows(tensor([[0.5575, 0.35, -1.0], [-2.15, 1.0, 0.0]]))
    assert returns.tolist() == rows(tensor([[1.0575, 1.35, 1.0], [-1.15, -1.0, 0.0]]))


def test_lambda_one_compares_rewards_to_go_with_the_value() -> None:
    # gamma = lambda = 1: the sum telescopes to rewards to go minus V_t; they are 0.6, 0.7, 1.
    values = tensor([[0.5, 1.0, 2.0]])
    advantages, returns = gae(tensor([[-0.1, -0.3, 1.0]]), values, tensor([[1.0, 1.0, 1.0]]), gamma=1.0, lambd=1.0)
    assert advantages.tolist() == rows(tensor([[0.1, -0.3, -1.0]]))
    assert returns.tolist() == rows(tensor([[0.6, 0.7, 1.0]]))


def test_lambda_zero_is_the_temporal_difference() -> None:
    advantages, _ = gae(
        tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 1.0, 2.0]]), tensor([[1.0, 1.0, 1.0]]), gamma=0.9, lambd=0.0
    )
    assert advantages.tolist() == rows(tensor([[0.4, 0.8, -1.0]]))


def test_without_values_and_kl_every_token_has_the_responses_credit() -> None:
    # What group estimators without a KL in the reward mean, so that they may skip all this.
    rewards = token_rewards(tensor([1.5, -0.5]), torch.zeros_like(PRESENT), PRESENT, kl_coef=0.1)
    advantages, _ = gae(rewards, torch.zeros_like(PRESENT), PRESENT, gamma=1.0, lambd=1.0)
    assert advantages.tolist() == [[1.5, 1.5, 1.5], [-0.5, -0.5, 0.0]]


def test_whitening_over_masked_tokens() -> None:
    # Trained values 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; the 100 is not trained.
    values, mask = tensor([[1.0, 3.0, 100.0], [5.0, 7.0, 0.0]]), tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    totals = moments(values, mask)
    assert totals.tolist() == [4.0, 16.0, 84.0]
    scaled = whiten(values, totals, scale=True)
    assert scaled[:, :2].flatten().tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert whiten(values, totals, scale=False)[:, :2].tolist() == [[-3.0, -1.0], [1.0, 3.0]]


def test_moments_of_parts_add_up() -> None:
    values, mask = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.ones(6, 4)
    mask[:, 3] = 0
    assert torch.allclose(moments(values[:2], mask[:2]) + moments(values[2:], mask[2:]), moments(values, mask))


def test_whitening_equal_values_or_none_gives_zero() -> None:
    values, mask = torch.full((2, 2), 0.3), torch.ones(2, 2)
    assert whiten(values, moments(values, mask), scale=True).abs().max() < 1e-3
    assert whiten(torch.zeros(1, 1), moments(torch.zeros(1, 1), torch.zeros(1, 1)), scale=True).tolist() == [[0.0]]
