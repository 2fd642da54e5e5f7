"""Corrections by name and by their parts: golden numbers, derived by hand, and what happens where everything is rejected."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import CORRECTIONS
from dapo_openrlhf.algorithm.correction import (
    SQUARE_EDGES,
    importance_weights,
    interpolated_logprobs,
    largest_square_kept,
    square_counts,
)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def named(name: Any) -> dict[str, Any]:
    return {key.removeprefix("is_correction_"): value for key, value in CORRECTIONS[name].items()}


def weights_of(
    old: list[list[float]], rollout: list[list[float]], **settings: Any
) -> tuple[list[list[float]], dict[str, float]]:
    old_logprobs, rollout_logprobs = tensor(old).log(), tensor(rollout).log()
    weights, sums = importance_weights(old_logprobs, rollout_logprobs, torch.ones_like(old_logprobs), **settings)
    return weights.tolist(), {key: value.item() for key, value in sums.items()}


def test_icepop_drops_single_tokens() -> None:
    # Weights 0.2/0.5 = 0.4 (below 0.5), 0.5/0.4 = 1.25, 0.6/0.1 = 6 (above 5), 0.5/0.1 = 5 (the bound itself stays).
    weights, sums = weights_of([[0.2, 0.5, 0.6, 0.5]], [[0.5, 0.4, 0.1, 0.1]], **named("icepop"))
    assert weights[0] == pytest.approx([0.0, 1.25, 0.0, 5.0])
    assert sums["is_outside"] == 2


def test_mis_drops_responses_and_truncates_the_others_tokens() -> None:
    # First response: weights 4 and 1/4, geometric mean 1, within 0.99 to 1.01: kept, 4 truncated to 2, 1/4 stays.
    # Second: weights 1.05 and 1, geometric mean 1.0247: dropped whole.
    weights, sums = weights_of([[0.4, 0.1], [0.42, 0.3]], [[0.1, 0.4], [0.4, 0.3]], **named("mis"))
    assert weights == [pytest.approx([2.0, 0.25]), [0.0, 0.0]]
    assert sums["is_outside"] == 2
    assert sums["is_weight"] == pytest.approx(2.25)


def test_tis_is_the_default_of_the_configuration() -> None:
    weights, _ = weights_of([[0.9, 0.1]], [[0.3, 0.4]], **named("tis"))
    assert weights[0] == pytest.approx([2.0, 0.25])  # 3 truncated to 2; 1/4


@pytest.mark.parametrize(("gating", "threshold"), [("tv", 0.25), ("binary_kl", 0.1)])
def test_divergences_of_tokens(gating: Any, threshold: float) -> None:
    # Rollout 0.5, 0.9, 0.1; old 0.2, 0.8, 0.1. Total variation 0.3, 0.1, 0.
    # Binary KL: 0.5 ln(0.5/0.2) + 0.5 ln(0.5/0.8) = 0.223144; 0.9 ln(0.9/0.8) + 0.1 ln(0.1/0.2) = 0.036690; 0.
    settings: dict[str, Any] = {"level": "token", "mode": "mask", "gating": gating, "threshold": (0.0, threshold)}
    weights, sums = weights_of([[0.2, 0.8, 0.1]], [[0.5, 0.9, 0.1]], **settings)
    assert weights[0] == pytest.approx([0.0, 8 / 9, 1.0])
    assert sums["is_outside"] == 1


def test_divergence_of_a_response_is_its_tokens_mean() -> None:
    # Total variations 0.3 and 0.1 of the first, mean 0.2: dropped at 0.15; 0.1 and 0 of the second, mean 0.05: kept.
    settings: dict[str, Any] = {"level": "seq", "mode": "mask", "gating": "tv", "threshold": (0.0, 0.15)}
    weights, _ = weights_of([[0.2, 0.8], [0.4, 0.5]], [[0.5, 0.9], [0.5, 0.5]], **settings)
    assert weights == [[0.0, 0.0], pytest.approx([0.8, 1.0])]


def square_bound(log_weights: list[float], tau: float) -> float:
    rollout = torch.full((1, len(log_weights)), -5.0, dtype=torch.float64)
    old = rollout + tensor([log_weights])
    return largest_square_kept(square_counts(old, rollout, torch.ones_like(old)), largest_mean=tau)


def test_m2po_masks_the_largest_squares_until_the_mean_is_small_enough() -> None:
    # Log weights 0.1, -0.2, 0.3, 1: squares 0.01, 0.04, 0.09, 1, mean 0.285. Without the largest 0.14 / 3 = 0.0467, still
    # above 0.04; without the second largest 0.05 / 2 = 0.025: the first two tokens stay.
    bound = square_bound([0.1, -0.2, 0.3, 1.0], 0.04)
    assert 0.04 <= bound < 0.09
    weights, sums = weights_of(
        [[math.exp(x) / 3 for x in (0.1, -0.2, 0.3, 1.0)]], [[1 / 3] * 4], **named("m2po"), largest_square=bound
    )
    assert weights[0] == pytest.approx([math.exp(0.1), math.exp(-0.2), 0.0, 0.0])
    assert sums["is_outside"] == 2


def test_m2po_leaves_a_batch_alone_that_is_near_enough() -> None:
    assert square_bound([0.1, -0.2, 0.3], 0.05) == math.inf  # mean 0.14 / 3 = 0.0467
    assert square_bound([0.0, 0.0], 0.04) == math.inf


def test_m2po_may_mask_everything() -> None:
    bound = square_bound([3.0, -3.0], 0.04)
    weights, sums = weights_of([[0.9, 0.9]], [[0.9 / math.e**3] * 2], **named("m2po"), largest_square=bound)
    assert weights == [[0.0, 0.0]]
    assert sums["is_outside"] == 2
    assert square_bound([1e6, -1e6], 0.04) < 400, "log ratios are cut at 20"


def test_m2po_finds_the_bound_within_two_percent() -> None:
    """Against sorting, on random weights whose largest have to go."""
    chance = torch.Generator().manual_seed(3)
    log_weights = 0.5 * torch.randn(5000, generator=chance, dtype=torch.float64)
    squares = log_weights.square().sort().values
    means = squares.cumsum(0) / torch.arange(1, 5001)
    exact = squares[means <= 0.04][-1].item()
    bound = square_bound(log_weights.tolist(), 0.04)
    assert exact / 1.02 <= bound <= exact * 1.02
    kept = squares[squares <= bound]
    assert kept.mean() <= 0.04


def test_counts_of_parts_add_up() -> None:
    chance = torch.Generator().manual_seed(4)
    old, rollout = torch.randn(2, 6, 9, generator=chance, dtype=torch.float64)
    mask = (torch.rand(6, 9, generator=chance) < 0.7).double()
    whole = square_counts(old, rollout, mask)
    parts = square_counts(old[:1], rollout[:1], mask[:1]) + square_counts(old[1:], rollout[1:], mask[1:])
    assert torch.allclose(whole, parts, rtol=1e-12)
    assert whole[0].sum() == mask.sum()
    assert whole.shape == (2, len(SQUARE_EDGES))


@pytest.mark.parametrize("name", ["icepop", "mis", "m2po"])
def test_everything_rejected_is_no_gradient_and_counted(name: Any) -> None:
    old = torch.tensor([[-1.0, -2.0], [-0.5, -0.1]])
    rollout = old - 80
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    largest = largest_square_kept(square_counts(old, rollout, mask), largest_mean=0.04)
    weights, sums = importance_weights(old, rollout, mask, **named(name), largest_square=largest)
    leaf = old.clone().requires_grad_()
    (-leaf * weights * mask).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() == 0
    assert sums["is_outside"] == 3
    assert all(value.isfinite() for value in sums.values())


@pytest.mark.parametrize("gating", ["ratio", "binary_kl", "tv"])
@pytest.mark.parametrize("distance", [80.0, -80.0, 1e30])
def test_weights_are_finite_far_away(gating: Any, distance: float) -> None:
    old = torch.tensor([[-1.0, -1.0]])
    rollout = torch.tensor([[-1.0 - max(distance, 0), -1.0 + min(distance, 0)]])
    for level in ("token", "seq"):
        weights, sums = importance_weights(
            old, rollout, torch.ones(1, 2), level=level, mode="mask", gating=gating, threshold=(0.0, 0.5), cap=2.0
        )
        assert weights.isfinite().all()
        assert all(value.isfinite() for value in sums.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": "seq", "mode": "clip"}, "nothing to clip"),
        ({"level": "token", "mode": "clip", "gating": "tv"}, "nothing to clip"),
        ({"level": "seq", "mode": "mask", "gating": "second_moment"}, "not responses"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        weights_of([[0.5]], [[0.5]], threshold=(0.0, 1.0), **settings)


# ---------------------------------------------------------------- A-3PO


def test_interpolated_log_probs_by_version() -> None:
    # Policy 0.4 on each token, rollout 0.1; half of the step's updates are done. Ages 0, 1 and 3:
    # alpha = 0 / 0.5 = 0: the rollout's, 0.1. alpha = 1 / 1.5 = 2/3: 0.1 * 4^(2/3) = 0.251984.
    # alpha = 3 / 3.5 = 6/7: 0.1 * 4^(6/7) = 0.328134.
    logprobs = tensor([[0.4] * 3]).log().requires_grad_()
    old = interpolated_logprobs(logprobs, tensor([[0.1] * 3]).log(), torch.tensor([[0, 1, 3]]), progress=0.5)
    assert old.exp()[0].tolist() == pytest.approx([0.1, 0.251984, 0.328134], abs=1e-6)
    assert not old.requires_grad


def test_whole_versions_are_those_of_the_paper() -> None:
    # With progress 1 the version being trained is the next one: alpha = 1/2 for a token of age 1, 2/3 for age 2.
    old = interpolated_logprobs(tensor([[0.0, 0.0]]), tensor([[-1.0, -1.0]]), torch.tensor([[1, 2]]), progress=1.0)
    assert old[0].tolist() == pytest.approx([-1 / 2, -1 / 3])


def test_before_the_first_update_the_policy_is_the_old_one() -> None:
    logprobs = torch.randn(2, 3)
    assert torch.equal(interpolated_logprobs(logprobs, torch.randn(2, 3), torch.zeros(2, 3), progress=0.0), logprobs)


def test_beyond_a_response_nothing_is_odd() -> None:
    # Version -1 stands beyond a response: an age like any other, of which the mask takes nothing.
    old = interpolated_logprobs(torch.zeros(1, 2), torch.zeros(1, 2), 7 - torch.tensor([[7, -1]]), progress=0.25)
    assert old.isfinite().all()
