"""Policy losses: golden numbers, derived by hand. Ratios are exact because log-probs are given as logarithms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.loss import aggregate, clipped_surrogate, importance_weights

ZERO = torch.tensor(0.0, dtype=torch.float64)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def surrogate(
    ratios: list[float], advantage: float, *, eps: tuple[float, float] = (0.2, 0.28), dual_clip: float | None = None
) -> tuple[list[float], list[bool], list[float]]:
    """Losses, whether clipping decided them, and d loss / d logprob for one response with the given ratios."""
    old = tensor([[-1.0] * len(ratios)])
    logprobs = (old + tensor([ratios]).log()).requires_grad_()
    losses, decided = clipped_surrogate(
        logprobs, old, tensor([[advantage]]), eps_low=eps[0], eps_high=eps[1], dual_clip=dual_clip
    )
    losses.sum().backward()
    assert logprobs.grad is not None
    return losses[0].tolist(), decided[0].tolist(), logprobs.grad[0].tolist()


def test_positive_advantage_is_clipped_above_only() -> None:
    # A = 2, range [0.8, 1.28]. r = 0.5: min(1.0, 1.6) = 1.0; r = 1.1: 2.2 twice; r = 1.5: min(3.0, 2.56) = 2.56.
    # The loss is minus that. d(-r A) / d logprob = -r A where not clipped, 0 where clipped.
    losses, decided, gradient = surrogate([0.5, 1.1, 1.5], 2.0)
    assert losses == pytest.approx([-1.0, -2.2, -2.56], rel=1e-12)
    assert decided == [False, False, True]
    assert gradient == pytest.approx([-1.0, -2.2, 0.0], rel=1e-12)


def test_negative_advantage_is_clipped_below_only() -> None:
    # A = -2, range [0.8, 1.28]. r = 0.5: min(-1.0, -1.6) = -1.6; r = 1.1: -2.2 twice; r = 1.5: min(-3.0, -2.56) = -3.
    losses, decided, gradient = surrogate([0.5, 1.1, 1.5], -2.0)
    assert losses == pytest.approx([1.6, 2.2, 3.0], rel=1e-12)
    assert decided == [True, False, False]
    assert gradient == pytest.approx([0.0, 2.2, 3.0], rel=1e-12)


def test_clip_higher_keeps_the_gradient_of_a_growing_token() -> None:
    # r = 1.25 lies between 1.2 and 1.28: under Clip-Higher (eq. 10) the token may grow on, with gradient -1.25;
    # under PPO's symmetric 0.2 the loss is stuck at -1.2 and the gradient is gone.
    assert surrogate([1.25], 1.0, eps=(0.2, 0.28)) == (pytest.approx([-1.25]), [False], pytest.approx([-1.25]))
    assert surrogate([1.25], 1.0, eps=(0.2, 0.2)) == (pytest.approx([-1.2]), [True], [0.0])


def test_clip_higher_leaves_the_lower_bound_alone() -> None:
    # r = 0.75 is below 1 - 0.2 and above 1 - 0.28: with A = -1 it is clipped, because eps_low bounds from below.
    assert surrogate([0.75], -1.0) == (pytest.approx([0.8]), [True], [0.0])


def test_ratio_of_one_is_plain_policy_gradient() -> None:
    # The first update of a step: r = 1 everywhere, loss -A, gradient -A, nothing clipped.
    assert surrogate([1.0, 1.0], 0.7) == (pytest.approx([-0.7] * 2), [False] * 2, pytest.approx([-0.7] * 2))


def test_zero_advantage_has_no_loss() -> None:
    losses, decided, gradient = surrogate([0.1, 1.0, 9.0], 0.0)
    assert [abs(x) for x in losses + gradient] == [0.0] * 6
    assert not any(decided)


def test_dual_clip_bounds_negative_advantages() -> None:
    # A = -2, c = 3: the objective is at least c A = -6, the loss at most 6. r = 2.5: loss 5 < 6, untouched;
    # r = 4: loss 8 becomes 6 without gradient; r = 0.5 stays at the ordinary clip, 1.6.
    losses, decided, gradient = surrogate([2.5, 4.0, 0.5], -2.0, dual_clip=3.0)
    assert losses == pytest.approx([5.0, 6.0, 1.6], rel=1e-12)
    assert decided == [False, True, True]
    assert gradient == pytest.approx([5.0, 0.0, 0.0], rel=1e-12)


def test_dual_clip_leaves_positive_advantages_alone() -> None:
    assert surrogate([0.1, 1.1, 4.0], 2.0, dual_clip=3.0) == surrogate([0.1, 1.1, 4.0], 2.0)


def test_each_response_has_its_own_advantage() -> None:
    # Two responses of two tokens, advantages [B, 1] = 1 and -1, all ratios 1: losses -1 and +1 by row.
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    losses, _ = clipped_surrogate(zeros, zeros, tensor([[1.0], [-1.0]]), eps_low=0.2, eps_high=0.28)
    assert losses.tolist() == [[-1.0, -1.0], [1.0, 1.0]]


# Three responses with 1, 3 and 2 tokens, token losses l; the last is overlong-filtered: its mask is 0.
LOSSES = tensor([[6.0, 9.0, 9.0], [1.0, 2.0, 3.0], [100.0, 100.0, 0.0]])
MASK = tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])


def test_token_mean_has_one_denominator() -> None:
    # eq. 12: (6 + 1 + 2 + 3) / 4 trained tokens = 3.
    assert aggregate(LOSSES, MASK, mode="token-mean", total_tokens=4, total_responses=2) == 3.0


def test_seq_mean_averages_responses_first() -> None:
    # eq. 5: (6 / 1 + (1 + 2 + 3) / 3) / 2 trained responses = (6 + 2) / 2 = 4.
    assert aggregate(LOSSES, MASK, mode="seq-mean-token-mean", total_tokens=4, total_responses=2) == 4.0


def test_denominators_are_the_updates_not_the_micro_batchs() -> None:
    # The same micro-batch within an update of 24 tokens and 8 responses: 12 / 24 and 8 / 8.
    assert aggregate(LOSSES, MASK, mode="token-mean", total_tokens=24, total_responses=8) == 0.5
    assert aggregate(LOSSES, MASK, mode="seq-mean-token-mean", total_tokens=24, total_responses=8) == 1.0


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_update_without_trained_tokens_has_loss_zero(mode: str) -> None:
    losses = LOSSES.clone().requires_grad_()
    loss = aggregate(losses, torch.zeros_like(MASK), mode=mode, total_tokens=0, total_responses=0)
    loss.backward()
    assert loss == 0.0
    assert losses.grad is not None and not losses.grad.any()


# One response of three tokens whose ratios old / rollout are 1/2, 1 and 4; a second, filtered one.
OLD = tensor([[0.5, 1.0, 4.0], [8.0, 8.0, 8.0]]).log() - 2.0
ROLLOUT = torch.full((2, 3), -2.0, dtype=torch.float64)
TRAINED = tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
# k3 estimate of KL(rollout || old), summed over the three tokens: r - 1 - ln r
#   r = 1/2: -1/2 + ln 2;  r = 1: 0;  r = 4: 3 - 2 ln 2.  Together 2.5 - ln 2 = 1.80685.
KL = 2.5 - math.log(2)


def weigh(level: str, mode: str, threshold: tuple[float, float] = (0.0, 2.0)) -> tuple[list[float], dict[str, float]]:
    weights, sums = importance_weights(OLD, ROLLOUT, TRAINED, level=level, mode=mode, threshold=threshold)
    assert weights.shape == (2, 3)
    return weights[0].tolist(), {name: value.item() for name, value in sums.items()}


def test_token_weights_clipped() -> None:
    # 1/2, 1, 4 truncated to at most 2: weights 1/2, 1, 2; sum 3.5, squares 0.25 + 1 + 4 = 5.25, one outside.
    # Effective sample size (sum w)^2 / sum w^2 = 12.25 / 5.25 = 2.33 of 3 tokens.
    weights, sums = weigh("token", "clip")
    assert weights == pytest.approx([0.5, 1.0, 2.0], rel=1e-12)
    assert sums == pytest.approx({"is_weight": 3.5, "is_weight_squared": 5.25, "is_outside": 1, "rollout_kl": KL})


def test_token_weights_clipped_from_below() -> None:
    # threshold (0.75, 2): 1/2 is raised to 3/4; two tokens outside.
    weights, sums = weigh("token", "clip", (0.75, 2.0))
    assert weights == pytest.approx([0.75, 1.0, 2.0], rel=1e-12)
    assert sums["is_outside"] == 2


def test_token_weights_masked() -> None:
    # 4 is outside and becomes 0: weights 1/2, 1, 0; sum 1.5, squares 1.25.
    weights, sums = weigh("token", "mask")
    assert weights == pytest.approx([0.5, 1.0, 0.0], rel=1e-12)
    assert sums == pytest.approx({"is_weight": 1.5, "is_weight_squared": 1.25, "is_outside": 1, "rollout_kl": KL})


def test_sequence_weight_is_the_geometric_mean() -> None:
    # (1/2 * 1 * 4)^(1/3) = 2^(1/3) = 1.26 on each of the response's tokens, within (0, 2).
    weights, sums = weigh("seq", "clip")
    assert weights == pytest.approx([2 ** (1 / 3)] * 3, rel=1e-12)
    assert sums == pytest.approx(
        {"is_weight": 3 * 2 ** (1 / 3), "is_weight_squared": 3 * 2 ** (2 / 3), "is_outside": 0, "rollout_kl": KL}
    )


def test_sequence_weight_outside_is_clipped_or_masked_on_every_token() -> None:
    weights, sums = weigh("seq", "clip", (0.0, 1.25))
    assert weights == pytest.approx([1.25] * 3, rel=1e-12)
    assert sums["is_outside"] == 3
    weights, sums = weigh("seq", "mask", (0.0, 1.25))
    assert weights == [0.0] * 3
    assert sums["is_outside"] == 3


def test_sequence_weight_ignores_padding() -> None:
    # A response of two tokens with ratios 2 and 1/2 (mean 1), padded by a position that holds garbage.
    weights, _ = importance_weights(
        tensor([[2.0, 0.5, 1e6]]).log(), ZERO.expand(1, 3), tensor([[1.0, 1.0, 0.0]]),
        level="seq", mode="clip", threshold=(0.0, 2.0),
    )  # fmt: skip
    assert weights[0, :2].tolist() == pytest.approx([1.0, 1.0], rel=1e-12)


def test_switched_off_the_weights_are_one_but_the_statistics_stay() -> None:
    weights, sums = weigh("off", "clip")
    assert weights == [1.0, 1.0, 1.0]
    assert sums == pytest.approx({"is_weight": 3, "is_weight_squared": 3, "is_outside": 1, "rollout_kl": KL})


@pytest.mark.parametrize("level", ["off", "token", "seq"])
def test_equal_policies_weigh_one(level: str) -> None:
    weights, sums = importance_weights(OLD, OLD, TRAINED, level=level, mode="mask", threshold=(0.0, 2.0))
    assert weights.tolist() == [[1.0] * 3] * 2
    assert {name: value.item() for name, value in sums.items()} == {
        "is_weight": 3, "is_weight_squared": 3, "is_outside": 0, "rollout_kl": 0,
    }  # fmt: skip


@pytest.mark.parametrize("level", ["off", "token", "seq"])
def test_weights_carry_no_gradient(level: str) -> None:
    old = OLD.clone().requires_grad_()
    weights, sums = importance_weights(old, ROLLOUT, TRAINED, level=level, mode="clip", threshold=(0.0, 2.0))
    assert not weights.requires_grad
    assert not any(value.requires_grad for value in sums.values())


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_gradient_against_finite_differences(mode: str, dual_clip: float | None) -> None:
    """The whole loss of a micro-batch, with ratios inside, above and below the clip range, none on an edge."""
    old = tensor([[-1.0, -2.0, -0.5], [-0.7, -1.2, -3.0]])
    ratios = tensor([[1.1, 1.6, 0.5], [0.6, 1.9, 1.2]])
    advantages = tensor([[1.3], [-0.8]])
    mask = tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])

    def loss(logprobs: Tensor) -> Tensor:
        weights, _ = importance_weights(old, old - 0.1, mask, level="token", mode="clip", threshold=(0.0, 2.0))
        losses, _ = clipped_surrogate(
            logprobs, old, advantages, eps_low=0.2, eps_high=0.28, dual_clip=dual_clip
        )  # fmt: skip
        return aggregate(losses * weights, mask, mode=mode, total_tokens=7, total_responses=3)

    logprobs = (old + ratios.log()).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logprobs), logprobs)
    step = 1e-6
    for row, column in [(row, column) for row in range(2) for column in range(3)]:
        nudge = torch.zeros_like(old)
        nudge[row, column] = step
        with torch.no_grad():
            slope = (loss(logprobs + nudge) - loss(logprobs - nudge)) / (2 * step)
        assert gradient[row, column].item() == pytest.approx(slope.item(), abs=1e-8)
    # By hand: the token at (0, 0) has r = 1.1 inside the range, A = 1.3 and weight e^0.1; its mean is over 7 tokens,
    # or over its response's 3 and 3 responses. The one at (0, 1) is clipped, the one at (1, 2) is padding.
    share = 7 if mode == "token-mean" else 9
    assert gradient[0, 0].item() == pytest.approx(-1.1 * 1.3 * math.exp(0.1) / share, rel=1e-12)
    assert gradient[0, 1] == 0.0
    assert gradient[1, 2] == 0.0
