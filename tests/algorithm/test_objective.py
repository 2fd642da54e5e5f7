"""Objectives of the policy losses: golden numbers, derived by hand, their gradients, and what happens far away.

Ratios are exact because log-probs are given as logarithms. Every closed form of a gradient is checked against finite
differences as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import PolicyLossType
from dapo_openrlhf.algorithm.objective import Limits, Objective, Policies, objective

LIMITS = Limits(eps_low=0.2, eps_high=0.28)
KINDS: tuple[PolicyLossType, ...] = get_args(PolicyLossType)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens_of(
    kind: PolicyLossType,
    policy: Sequence[float],
    old: Sequence[float],
    advantage: float,
    *,
    limits: Limits = LIMITS,
    rollout: Sequence[float] | None = None,
    mask: Sequence[float] | None = None,
) -> tuple[Objective, list[float]]:
    """The objective of one response, and d (sum of losses) / d logprob of each token."""
    logprobs = tensor([policy]).log().requires_grad_()
    denominator = tensor([old]).log()
    policies = Policies(
        logprobs=logprobs,
        denominator=denominator,
        rollout=denominator if rollout is None else tensor([rollout]).log(),
    )
    trained = torch.ones_like(denominator) if mask is None else tensor([mask])
    tokens = objective(kind, policies, tensor([[advantage]]), trained, limits)
    (gradient,) = torch.autograd.grad((tokens.losses * trained).sum(), logprobs)
    return tokens, gradient[0].tolist()


def test_cispo_weighs_log_probs_by_truncated_ratios() -> None:
    # Policy 0.3, 0.1, 0.2 over 0.2, 0.2, 0.2: ratios 1.5 (truncated to 1.28), 0.5 (no lower bound), 1. A = 2.
    # Losses -w A ln pi: -1.28 * 2 ln 0.3 = 3.082170, -0.5 * 2 ln 0.1 = 2.302585, -2 ln 0.2 = 3.218876.
    # w has no gradient, so d loss / d ln pi = -w A = -2.56, -1, -2: the truncated token still learns.
    tokens, gradient = tokens_of("cispo", [0.3, 0.1, 0.2], [0.2, 0.2, 0.2], 2.0)
    assert tokens.losses[0].tolist() == pytest.approx([3.082170, 2.302585, 3.218876], abs=1e-6)
    assert gradient == pytest.approx([-2.56, -1.0, -2.0], rel=1e-12)
    assert tokens.decided[0].tolist() == [True, False, False]


def test_cispo_truncates_negative_advantages_as_well() -> None:
    # Where PPO would leave a ratio of 1.5 alone (A < 0), the weight is truncated all the same: gradient 1.28.
    _, gradient = tokens_of("cispo", [0.3], [0.2], -1.0)
    assert gradient == pytest.approx([1.28], rel=1e-12)


def test_dppo_drops_what_has_moved_too_far_in_the_advantages_direction() -> None:
    # delta 0.15, A = 1, rollout as the denominator. 0.5 -> 0.7: moved by 0.2, dropped. 0.01 -> 0.05: ratio 5, moved by 0.04
    # only, kept with loss -5 and gradient -5, where PPO would clip. 0.6 -> 0.3: moved by -0.3, but against A: kept, -0.5.
    tokens, gradient = tokens_of("dppo_tv", [0.7, 0.05, 0.3], [0.5, 0.01, 0.6], 1.0)
    assert tokens.losses[0].tolist() == pytest.approx([0.0, -5.0, -0.5], rel=1e-12)
    assert gradient == pytest.approx([0.0, -5.0, -0.5], rel=1e-12)
    assert tokens.decided[0].tolist() == [True, False, False]


def test_dppo_with_a_negative_advantage() -> None:
    # A = -1: 0.6 -> 0.3 has moved by -0.3 with A, dropped; 0.5 -> 0.7 against A, kept with loss 1.4; 0.99 -> 0.85: ratio
    # 0.8586 and moved by -0.14, kept with loss 0.858586.
    tokens, gradient = tokens_of("dppo_tv", [0.3, 0.7, 0.85], [0.6, 0.5, 0.99], -1.0)
    assert tokens.losses[0].tolist() == pytest.approx([0.0, 1.4, 0.85 / 0.99], rel=1e-12)
    assert gradient == pytest.approx([0.0, 1.4, 0.85 / 0.99], rel=1e-12)
    assert tokens.decided[0].tolist() == [True, False, False]


def test_dppo_measures_from_the_rollout_whatever_the_denominator() -> None:
    # The ratio to the old policy is 1, but the rollout's probability was 0.3 and is 0.5 now: dropped.
    tokens, gradient = tokens_of("dppo_tv", [0.5], [0.5], 1.0, rollout=[0.3])
    assert tokens.decided.tolist() == [[True]]
    assert gradient == [0.0]


def test_sapo_is_a_soft_gate() -> None:
    # tau 1, A = 1: f(r) = 4 sigmoid(r - 1). r = 1: 4 / 2 = 2; r = 2: 4 / (1 + 1/e) = 2.924234; r = 1/2: 4 / (1 + e^0.5)
    # = 1.510163. d f / d ln pi = 4 s (1 - s) r with s the sigmoid: 1 at r = 1, as plain policy gradient;
    # r = 2: 4 * 0.731059 * 0.268941 * 2 = 1.572895; r = 1/2: 4 * 0.377541 * 0.622459 * 0.5 = 0.470007.
    tokens, gradient = tokens_of("sapo", [0.2, 0.4, 0.1], [0.2, 0.2, 0.2], 1.0)
    assert tokens.losses[0].tolist() == pytest.approx([-2.0, -2.924234, -1.510163], abs=1e-6)
    assert gradient == pytest.approx([-1.0, -1.572895, -0.470007], abs=1e-6)
    assert not tokens.decided.any()


def test_sapo_is_stricter_with_negative_advantages() -> None:
    # tau 2 for A = -1, r = 2: f = 4/2 sigmoid(2) = 2 * 0.880797 = 1.761594, loss 1.761594;
    # d loss / d ln pi = 4 * 0.880797 * 0.119203 * 2 = 0.839949, against 1.572895 with tau 1. r = 1: gradient 1 still.
    limits = Limits(eps_low=0.2, eps_high=0.28, tau=(2.0, 1.0))
    tokens, gradient = tokens_of("sapo", [0.4, 0.2], [0.2, 0.2], -1.0, limits=limits)
    assert tokens.losses[0].tolist() == pytest.approx([1.761594, 1.0], abs=1e-6)
    assert gradient == pytest.approx([0.839949, 1.0], abs=1e-6)


def test_gmpo_is_the_geometric_mean_of_clipped_ratios() -> None:
    # Ratios 2 (to 1.28 as A > 0), 1/2 (below 0.8, but only A < 0 clips there), 1; the fourth token is not trained.
    # Geometric mean (1.28 * 0.5 * 1)^(1/3) = 0.64^(1/3) = 0.861774 on each of the three tokens: loss -A times that.
    # d loss / d ln pi_t = -A s / 3 where not clipped; the sum over three tokens that carry s: -A s = -1.723548 for A = 2.
    tokens, gradient = tokens_of("gmpo", [0.4, 0.1, 0.2, 0.9], [0.2, 0.2, 0.2, 0.1], 2.0, mask=[1, 1, 1, 0])
    assert tokens.losses[0, :3].tolist() == pytest.approx([-2 * 0.64 ** (1 / 3)] * 3, rel=1e-12)
    assert gradient == pytest.approx([0.0, -2 * 0.64 ** (1 / 3), -2 * 0.64 ** (1 / 3), 0.0], rel=1e-12)
    assert tokens.decided[0, :3].tolist() == [True, False, False]


def test_gmpo_clips_below_for_negative_advantages() -> None:
    # A = -1: ratio 1/2 to 0.8, ratio 2 stays. Geometric mean (0.8 * 2)^(1/2) = 1.264911, loss 1.264911.
    tokens, gradient = tokens_of("gmpo", [0.1, 0.4], [0.2, 0.2], -1.0)
    assert tokens.losses[0].tolist() == pytest.approx([1.6**0.5] * 2, rel=1e-12)
    assert gradient == pytest.approx([0.0, 1.6**0.5], rel=1e-12)


def test_gmpos_range_of_the_paper_is_e_to_the_0_4() -> None:
    # eps_high e^0.4 - 1 = 0.4918: a ratio of e is clipped to e^0.4, whose mean with 1 is e^0.2.
    limits = Limits(eps_low=1 - math.exp(-0.4), eps_high=math.exp(0.4) - 1)
    tokens, _ = tokens_of("gmpo", [0.1 * math.e, 0.2], [0.1, 0.2], 1.0, limits=limits)
    assert tokens.losses[0].tolist() == pytest.approx([-math.exp(0.2)] * 2, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_at_a_ratio_of_one_every_kind_is_plain_policy_gradient(kind: PolicyLossType, advantage: float) -> None:
    _, gradient = tokens_of(kind, [0.5, 0.2, 0.9], [0.5, 0.2, 0.9], advantage)
    assert gradient == pytest.approx([-advantage] * 3, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("advantage", [1.3, -1.3, 0.0])
def test_gradients_are_those_of_finite_differences(kind: PolicyLossType, advantage: float) -> None:
    """Tokens on both sides of every bound, none within a step of one. CISPO's weight is held, as it has no gradient."""
    policy, old = tensor([[0.30, 0.10, 0.21, 0.62, 0.02]]).log(), tensor([[0.20, 0.20, 0.20, 0.40, 0.001]]).log()
    mask = tensor([[1, 1, 1, 1, 1]])

    def total(logprobs: Tensor) -> Tensor:
        policies = Policies(logprobs=logprobs, denominator=old, rollout=old)
        tokens = objective(kind, policies, tensor([[advantage]]), mask, LIMITS)
        if kind == "cispo":
            held = objective(
                kind, Policies(logprobs=policy, denominator=old, rollout=old), tensor([[advantage]]), mask, LIMITS
            )
            return (held.losses / policy * logprobs).sum()
        return tokens.losses.sum()

    leaf = policy.clone().requires_grad_()
    policies = Policies(logprobs=leaf, denominator=old, rollout=old)
    tokens = objective(kind, policies, tensor([[advantage]]), mask, LIMITS)
    (gradient,) = torch.autograd.grad(tokens.losses.sum(), leaf)
    step = 1e-6
    for token in range(5):
        shift = torch.zeros_like(policy)
        shift[0, token] = step
        numeric = (total(policy + shift) - total(policy - shift)) / (2 * step)
        assert gradient[0, token].item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_ratio", [80.0, -80.0, 1000.0, -1000.0, math.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_ratios_far_away_stay_finite(kind: PolicyLossType, log_ratio: float, advantage: float) -> None:
    """In float32, as trainers compute; one token far away beside one that is not."""
    old = torch.tensor([[-log_ratio if log_ratio < math.inf else -3e38, -1.0]])
    logprobs = torch.tensor([[0.0, -1.0]], requires_grad=True)
    policies = Policies(logprobs=logprobs, denominator=old, rollout=old.clamp(max=0))
    tokens = objective(kind, policies, torch.tensor([[advantage]]), torch.ones(1, 2), LIMITS)
    (gradient,) = torch.autograd.grad(tokens.losses.sum(), logprobs)
    assert tokens.losses.isfinite().all() and tokens.ratio.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: PolicyLossType) -> None:
    bare, gradient = tokens_of(kind, [0.3, 0.1], [0.2, 0.2], 1.0)
    padded, with_padding = tokens_of(kind, [0.3, 0.1, 0.9], [0.2, 0.2, 1e-9], 1.0, mask=[1, 1, 0])
    assert padded.losses[0, :2].tolist() == bare.losses[0].tolist()
    assert with_padding == [*gradient, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_without_trained_tokens_has_no_gradient(kind: PolicyLossType) -> None:
    tokens, gradient = tokens_of(kind, [0.3, 0.1], [0.2, 0.2], 1.0, mask=[0, 0])
    assert tokens.losses.isfinite().all()
    assert [abs(value) for value in gradient] == [0.0, 0.0]
