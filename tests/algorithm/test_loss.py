"""Policy losses: golden numbers, derived by hand. Ratios are exact because log-probs are given as logarithms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.algorithm.aggregation import token_weights
from dapo_openrlhf.algorithm.choices import LossAggMode
from dapo_openrlhf.algorithm.correction import importance_weights
from dapo_openrlhf.algorithm.kl import kl_estimate
from dapo_openrlhf.algorithm.loss import aggregate, clipped_surrogate, policy_ratio, value_loss

ZERO = torch.tensor(0.0, dtype=torch.float64)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def surrogate(
    ratios: list[float], advantage: float, *, eps: tuple[float, float] = (0.2, 0.28), dual_clip: float | None = None
) -> tuple[list[float], list[bool], list[float]]:
    """Losses, whether clipping decided them, and d loss / d logprob for one response with the given ratios."""
    old = tensor([[-1.0] * len(ratios)])
    logprobs = (old + tensor([ratios]).log()).requires_grad_()
    ratio = policy_ratio(logprobs, old, torch.ones_like(old), level="ppo")
    losses, decided = clipped_surrogate(
        ratio, tensor([[advantage]]), eps_low=eps[0], eps_high=eps[1], dual_clip=dual_clip
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
    ones = torch.ones(2, 2, dtype=torch.float64)
    losses, _ = clipped_surrogate(ones, tensor([[1.0], [-1.0]]), eps_low=0.2, eps_high=0.28, dual_clip=None)
    assert losses.tolist() == [[-1.0, -1.0], [1.0, 1.0]]


@pytest.mark.parametrize("level", ["ppo", "gspo"])
@pytest.mark.parametrize(("log_ratio", "advantage"), [(1000.0, -1.0), (-1000.0, 1.0), (1000.0, 1.0), (-1000.0, -1.0)])
def test_ratios_far_away_stay_finite(level: str, log_ratio: float, advantage: float) -> None:
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    ratio = policy_ratio(logprobs, torch.zeros(1, 1), torch.ones(1, 1), level=level)  # type: ignore[arg-type]
    losses, _ = clipped_surrogate(ratio, torch.tensor([[advantage]]), eps_low=0.2, eps_high=0.28, dual_clip=None)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logprobs.grad is not None and logprobs.grad.isfinite().all()


# ---------------------------------------------------------------- the ratio of a response (GSPO)


def test_a_responses_ratio_is_its_geometric_mean() -> None:
    # Token ratios 1/2, 1, 4 and a padding of garbage: (1/2 * 1 * 4)^(1/3) = 2^(1/3) = 1.26 on each token.
    # d s / d logprob_t = s / 3 on trained tokens; summed over the four positions that carry s: 4 s / 3.
    logprobs = tensor([[0.5, 1.0, 4.0, 99.0]]).log().requires_grad_()
    mask = tensor([[1.0, 1.0, 1.0, 0.0]])
    ratio = policy_ratio(logprobs, torch.zeros_like(mask), mask, level="gspo")
    assert ratio[0].tolist() == pytest.approx([2 ** (1 / 3)] * 4, rel=1e-12)
    (gradient,) = torch.autograd.grad(ratio.sum(), logprobs)
    assert gradient[0].tolist() == pytest.approx([4 / 3 * 2 ** (1 / 3)] * 3 + [0.0], rel=1e-12)


def test_gspo_clips_a_whole_response() -> None:
    # A = 1, range [0.8, 1.28]. First response: ratios 4 and 1, s = 2, clipped to 1.28 on both tokens. Second: ratios
    # 1.5 and 2/3, s = 1, not clipped, although by itself the first token would be (1.5 > 1.28).
    # Mean per response, then over responses (eq. 5): -(1.28 + 1) / 2 = -1.14.
    logprobs = tensor([[4.0, 1.0], [1.5, 2 / 3]]).log()
    mask = torch.ones_like(logprobs)
    ratio = policy_ratio(logprobs, torch.zeros_like(mask), mask, level="gspo")
    losses, decided = clipped_surrogate(ratio, tensor([[1.0], [1.0]]), eps_low=0.2, eps_high=0.28, dual_clip=None)
    assert losses.flatten().tolist() == pytest.approx([-1.28, -1.28, -1.0, -1.0], rel=1e-12)
    assert decided.tolist() == [[True, True], [False, False]]
    weights = tensor([[weight] for weight in token_weights([0, 0], [2, 2], mode="seq-mean-token-mean", longest=9)])
    assert aggregate(losses, mask, weights).item() == pytest.approx(-1.14, rel=1e-12)


# ---------------------------------------------------------------- aggregation

# Four responses of two prompts with 1, 3, 2 and 2 tokens; the third is overlong-filtered: its mask is 0.
LOSSES = tensor([[6.0, 9.0, 9.0], [1.0, 2.0, 3.0], [100.0, 100.0, 0.0], [5.0, 7.0, 0.0]])
MASK = tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
PROMPTS = [0, 0, 1, 1]
TOKENS = [1, 3, 0, 2]
MODES: list[LossAggMode] = [
    "token-mean", "seq-mean-token-mean", "prompt-mean-token-mean", "seq-mean-token-sum-norm",
]  # fmt: skip


def aggregated(mode: LossAggMode) -> float:
    weights = token_weights(PROMPTS, TOKENS, mode=mode, longest=10)
    return aggregate(LOSSES, MASK, tensor(weights)[:, None]).item()


def test_token_mean_has_one_denominator() -> None:
    # DAPO eq. 12: (6 + 1 + 2 + 3 + 5 + 7) / 6 trained tokens = 4.
    assert aggregated("token-mean") == pytest.approx(4.0, rel=1e-12)


def test_seq_mean_averages_responses_first() -> None:
    # GRPO eq. 3: (6 / 1 + (1 + 2 + 3) / 3 + (5 + 7) / 2) / 3 trained responses = (6 + 2 + 6) / 3 = 14/3.
    assert aggregated("seq-mean-token-mean") == pytest.approx(14 / 3, rel=1e-12)


def test_prompt_mean_averages_prompts_first() -> None:
    # DAPO eq. 8 prompt by prompt: ((6 + 1 + 2 + 3) / 4 + (5 + 7) / 2) / 2 prompts = (3 + 6) / 2 = 4.5.
    assert aggregated("prompt-mean-token-mean") == pytest.approx(4.5, rel=1e-12)


def test_token_sum_norm_divides_by_a_constant() -> None:
    # Dr. GRPO: (6 + 6 + 12) / 10 tokens that a response may have / 3 trained responses = 0.8.
    assert aggregated("seq-mean-token-sum-norm") == pytest.approx(0.8, rel=1e-12)


def test_prompts_without_trained_tokens_do_not_count() -> None:
    # One of three prompts is wholly masked: the mean is over the other two.
    assert token_weights([0, 1, 2], [4, 0, 5], mode="prompt-mean-token-mean", longest=9) == [1 / 8, 0.0, 1 / 10]


@pytest.mark.parametrize("mode", MODES)
def test_update_without_trained_tokens_has_loss_zero(mode: LossAggMode) -> None:
    losses = LOSSES.clone().requires_grad_()
    weights = token_weights(PROMPTS, [0, 0, 0, 0], mode=mode, longest=10)
    loss = aggregate(losses, torch.zeros_like(MASK), tensor(weights)[:, None])
    loss.backward()
    assert loss == 0.0
    assert losses.grad is not None and not losses.grad.any()


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "prompt-mean-token-mean"])
def test_equal_losses_keep_their_size(mode: LossAggMode) -> None:
    # Every mean of a constant is the constant, so modes can be exchanged without changing the learning rate.
    weights = token_weights(PROMPTS, TOKENS, mode=mode, longest=10)
    assert aggregate(torch.full_like(MASK, 3.0), MASK, tensor(weights)[:, None]).item() == pytest.approx(3.0)


# ---------------------------------------------------------------- KL


def test_kl_estimates() -> None:
    # Policy over reference 2, 1 and 1/2: log ratios x = ln 2, 0, -ln 2.
    #   k1 = x;  k2 = x^2 / 2 = 0.2402 at both ends;  k3 = 1/ratio - 1 + x: 1/2 - 1 + ln 2, 0, 2 - 1 - ln 2.
    log2 = math.log(2)
    logprobs, reference = tensor([2.0, 1.0, 0.5]).log() - 3, tensor([1.0, 1.0, 1.0]).log() - 3
    assert kl_estimate(logprobs, reference, estimator="k1").tolist() == pytest.approx([log2, 0, -log2])
    assert kl_estimate(logprobs, reference, estimator="k2").tolist() == pytest.approx([log2**2 / 2, 0, log2**2 / 2])
    assert kl_estimate(logprobs, reference, estimator="k3").tolist() == pytest.approx([log2 - 0.5, 0, 1 - log2])


def test_kl_gradients() -> None:
    # d k1 / d logprob = 1 whatever the ratio, which averages to no gradient; d k2 = x; d k3 = 1 - 1/ratio.
    for estimator, expected in (("k1", [1, 1]), ("k2", [math.log(2), -math.log(2)]), ("k3", [0.5, -1])):
        logprobs = tensor([2.0, 0.5]).log().requires_grad_()
        kl_estimate(logprobs, tensor([0.0, 0.0]), estimator=estimator).sum().backward()  # type: ignore[arg-type]
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates_average_to_the_kl(estimator: str) -> None:
    # Policy (0.6, 0.4) against (0.5, 0.5): KL = 0.6 ln 1.2 + 0.4 ln 0.8 = 0.020136. k1 and k3 average to it exactly
    # under the policy; k2 differs in the third order of x: 0.6 * 0.016621 + 0.4 * 0.024897 = 0.019931.
    policy, reference = tensor([0.6, 0.4]), tensor([0.5, 0.5])
    mean = (policy * kl_estimate(policy.log(), reference.log(), estimator=estimator)).sum()  # type: ignore[arg-type]
    exact = 0.6 * math.log(1.2) + 0.4 * math.log(0.8)
    assert mean.item() == pytest.approx(0.019931 if estimator == "k2" else exact, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("distance", [-500.0, 500.0])
def test_kl_estimate_stays_finite_far_away(estimator: str, distance: float) -> None:
    logprobs = torch.tensor([distance], requires_grad=True)
    estimate = kl_estimate(logprobs, torch.zeros(1), estimator=estimator)  # type: ignore[arg-type]
    estimate.sum().backward()
    assert abs(estimate.item()) == 10.0
    assert logprobs.grad is not None and logprobs.grad.item() == 0.0


def test_grpo_loss_by_hand() -> None:
    # Two responses of one prompt, advantages 1 and -1, eps 0.2, beta 0.04, k3; GRPO eqs. 3 and 4.
    # Response 1: ratios 1.5 and 1, surrogate losses -1.2 (clipped) and -1; policy over reference 2 and 1:
    #   k3 = ln 2 - 1/2 = 0.193147 and 0. Mean: (-1.2 - 1 + 0.04 * 0.193147) / 2 = -1.096137.
    # Response 2: ratio 0.5, surrogate loss 0.8 (clipped); policy over reference 1/2: k3 = 1 - ln 2 = 0.306853.
    #   Mean of its one token: 0.8 + 0.04 * 0.306853 = 0.812274.
    # Mean of both responses: (-1.096137 + 0.812274) / 2 = -0.141931.
    logprobs = tensor([[0.3, 0.2], [0.1, 1.0]]).log()
    old = tensor([[0.2, 0.2], [0.2, 1.0]]).log()
    reference = tensor([[0.15, 0.2], [0.2, 1.0]]).log()
    mask = tensor([[1.0, 1.0], [1.0, 0.0]])
    ratio = policy_ratio(logprobs, old, mask, level="ppo")
    losses, _ = clipped_surrogate(ratio, tensor([[1.0], [-1.0]]), eps_low=0.2, eps_high=0.2, dual_clip=None)
    losses = losses + 0.04 * kl_estimate(logprobs, reference, estimator="k3")
    weights = token_weights([0, 0], [2, 1], mode="seq-mean-token-mean", longest=2)
    assert aggregate(losses, mask, tensor(weights)[:, None]).item() == pytest.approx(-0.141931, abs=1e-6)


def test_dapo_loss_by_hand() -> None:
    # The same two responses under DAPO: eps 0.2 / 0.28, no KL, one denominator of 3 tokens (eqs. 8, 10 and 12).
    # Losses -1.28 (clipped later than at 1.2), -1 and 0.8: together -1.48; over 3 tokens -0.493333.
    logprobs = tensor([[0.3, 0.2], [0.1, 1.0]]).log()
    old = tensor([[0.2, 0.2], [0.2, 1.0]]).log()
    mask = tensor([[1.0, 1.0], [1.0, 0.0]])
    ratio = policy_ratio(logprobs, old, mask, level="ppo")
    losses, _ = clipped_surrogate(ratio, tensor([[1.0], [-1.0]]), eps_low=0.2, eps_high=0.28, dual_clip=None)
    weights = token_weights([0, 0], [2, 1], mode="token-mean", longest=2)
    assert aggregate(losses, mask, tensor(weights)[:, None]).item() == pytest.approx(-1.48 / 3, rel=1e-12)


# ---------------------------------------------------------------- the critic's loss


def test_value_loss_is_half_the_squared_error() -> None:
    # Values 1 and 3, returns 2 and 1: errors 1 and 4, halves 0.5 and 2.
    losses = value_loss(tensor([[1.0, 3.0]]), tensor([[0.0, 0.0]]), tensor([[2.0, 1.0]]), clip=None)
    assert losses.tolist() == [[0.5, 2.0]]


def test_clipped_value_loss_takes_the_larger_error() -> None:
    # Old value 0, clip 0.5, return 2. Value 1 is clipped to 0.5: errors 1 and 2.25, so 2.25 / 2, without gradient;
    # value -1 is clipped to -0.5: errors 9 and 6.25, so 9 / 2, with gradient -3; value 0.3 is inside: 2.89 / 2.
    values = tensor([[1.0, -1.0, 0.3]]).requires_grad_()
    losses = value_loss(values, torch.zeros(1, 3, dtype=torch.float64), tensor([[2.0, 2.0, 2.0]]), clip=0.5)
    losses.sum().backward()
    assert losses[0].tolist() == pytest.approx([1.125, 4.5, 1.445], rel=1e-12)
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, -3.0, -1.7], rel=1e-12)


# ---------------------------------------------------------------- importance weights

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


def test_responses_within_the_bounds_keep_their_tokens_weights() -> None:
    # Geometric mean (1/2 * 1 * 4)^(1/3) = 2^(1/3) = 1.26: within (0, 2), outside (0, 1.25). Weights are the tokens' own.
    weights, sums = weigh("seq", "mask")
    assert weights == pytest.approx([0.5, 1.0, 4.0], rel=1e-12)
    assert sums == pytest.approx({"is_weight": 5.5, "is_weight_squared": 17.25, "is_outside": 0, "rollout_kl": KL})
    weights, sums = weigh("seq", "mask", (0.0, 1.25))
    assert weights == [0.0] * 3
    assert sums["is_outside"] == 3


def test_whole_responses_are_not_clipped() -> None:
    with pytest.raises(ValueError, match="nothing to clip"):
        weigh("seq", "clip")


def test_a_response_is_judged_without_its_padding() -> None:
    # A response of two tokens with ratios 2 and 1/2 (mean 1), padded by a position that holds garbage.
    weights, _ = importance_weights(
        tensor([[2.0, 0.5, 1e6]]).log(), ZERO.expand(1, 3), tensor([[1.0, 1.0, 0.0]]),
        level="seq", mode="mask", threshold=(0.9, 1.1),
    )  # fmt: skip
    assert weights[0, :2].tolist() == pytest.approx([2.0, 0.5], rel=1e-12)


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
    weights, sums = importance_weights(old, ROLLOUT, TRAINED, level=level, mode="mask", threshold=(0.0, 2.0))
    assert not weights.requires_grad
    assert not any(value.requires_grad for value in sums.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("level", ["ppo", "gspo"])
def test_gradient_against_finite_differences(mode: LossAggMode, dual_clip: float | None, level: str) -> None:
    """The whole loss of a micro-batch, with ratios inside, above and below the clip range, none on an edge."""
    old = tensor([[-1.0, -2.0, -0.5], [-0.7, -1.2, -3.0]])
    ratios = tensor([[1.1, 1.6, 0.5], [0.6, 1.9, 1.2]])
    advantages = tensor([[1.3], [-0.8]])
    mask = tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    # Within an update of three responses of two prompts and seven tokens.
    shares = tensor(token_weights([0, 0, 1], [3, 2, 2], mode=mode, longest=5)[:2])[:, None]

    def loss(logprobs: Tensor) -> Tensor:
        weights, _ = importance_weights(old, old - 0.1, mask, level="token", mode="clip", threshold=(0.0, 2.0))
        ratio = policy_ratio(logprobs, old, mask, level=level)  # type: ignore[arg-type]
        losses, _ = clipped_surrogate(ratio, advantages, eps_low=0.2, eps_high=0.28, dual_clip=dual_clip)
        losses = losses + 0.1 * kl_estimate(logprobs, old - 0.2, estimator="k3")
        return aggregate(losses * weights, mask, shares)

    logprobs = (old + ratios.log()).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logprobs), logprobs)
    step = 1e-6
    for row, column in [(row, column) for row in range(2) for column in range(3)]:
        nudge = torch.zeros_like(old)
        nudge[row, column] = step
        with torch.no_grad():
            slope = (loss(logprobs + nudge) - loss(logprobs - nudge)) / (2 * step)
        assert gradient[row, column].item() == pytest.approx(slope.item(), abs=1e-8)
    assert gradient[1, 2] == 0.0  # padding
    if level == "ppo":
        # By hand: the token at (0, 1) is clipped, so that its KL alone has a gradient, 0.1 (1 - exp(-x)) with
        # x = ln 1.6 + 0.2; the one at (0, 0) has r = 1.1 inside the range, A = 1.3 besides. Both weigh e^0.1.
        share = {"token-mean": 7, "seq-mean-token-mean": 9, "prompt-mean-token-mean": 10, "seq-mean-token-sum-norm": 15}
        clipped = 0.1 * (1 - math.exp(-0.2) / 1.6)
        inside = -1.1 * 1.3 + 0.1 * (1 - math.exp(-0.2) / 1.1)
        assert gradient[0, 1].item() == pytest.approx(clipped * math.exp(0.1) / share[mode], rel=1e-12)
        assert gradient[0, 0].item() == pytest.approx(inside * math.exp(0.1) / share[mode], rel=1e-12)
