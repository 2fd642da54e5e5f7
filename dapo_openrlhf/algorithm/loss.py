"""Policy losses (torch only). Tensors in, (scalar, sums) out; no rank, no collective, no configuration.

Legend: B responses, T response positions (right-padded); ``mask`` [B, T] is 1 on trained tokens.

Three log-probs, three names:

* ``logprobs`` - of the weights being trained; the only one with a gradient;
* ``old_logprobs`` - of the trainer's weights at the start of the rollout step: the denominator of the ratio;
* ``rollout_logprobs`` - of the weights that sampled, as reported by vLLM.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import PolicyLossType

LARGEST_LOG_RATIO = 20.0
"""Bound of a log ratio, far outside every clip range, at which ratios are cut so that none is infinite."""

Sums = dict[str, Tensor]
"""Metrics as sums over trained tokens, so that micro-batches and ranks add up; divide by ``tokens``."""


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, level: PolicyLossType) -> Tensor:
    """Ratio [B, T] of the policy being trained to the old one, differentiable.

    ``gspo`` and ``gmpo``: the response's, ``(pi(y) / pi_old(y))^(1/|y|)``, on each of its tokens: arXiv 2507.18071, eq.
    7. The others: each token's, ``exp(logprobs - old_logprobs)``: arXiv 1707.06347, eq. 6; DAPO eq. 8.
    """
    log_ratio = logprobs - old_logprobs
    match level:
        case "ppo" | "cispo" | "dppo_tv" | "sapo":
            pass
        case "gspo" | "gmpo":
            log_ratio = response_mean(log_ratio * mask, mask)
        case _:
            assert_never(level)
    return torch.exp(log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def response_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each response's masked values, on each of its positions."""
    return (values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)).expand_as(mask)


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, eps_low: float, eps_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Per-token loss [B, T] and whether clipping decided it [B, T].

    ``-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)``: DAPO eqs. 8 and 10; PPO's (arXiv 1707.06347, eq. 7) where
    both eps are equal. With ``dual_clip`` c > 1, ``c A`` bounds the objective from below for A < 0 (arXiv 1912.09729,
    eq. 5). ``advantages`` broadcasts to [B, T].
    """
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - eps_low, 1 + eps_high) * advantages
    loss = torch.maximum(unclipped, clipped)
    decided = clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        too_low = (advantages < 0) & (loss > bound)
        loss = torch.where(too_low, bound, loss)
        decided = decided | too_low
    return loss, decided


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Per-token loss [B, T] of the critic, half the squared error; PPO (arXiv 1707.06347), eq. 9's second term.

    With ``clip`` the value may leave ``old_values`` by at most that much before the larger of both errors counts
    (arXiv 2005.12729, section 3).
    """
    errors = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (clipped - returns).square())
    return errors / 2


def aggregate(token_losses: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sum a micro-batch's token losses [B, T] to its share of the update's loss.

    ``weights`` [B, 1] is the weight of each of a response's tokens in the whole update, see :mod:`aggregation`; so
    shares add up to the same loss however the update is cut. An update without trained tokens has loss 0.
    """
    return (token_losses * mask * weights).sum()


def disagreement(logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> Sums:
    """How far the trainer's log-probs [B, T] are from the engines' where ``mask`` is 1: tokens of the same weights.

    Sums: ``fresh_tokens``, and ``fresh_kl``, the k3 estimate of KL(rollout || trainer), >= 0.
    """
    log_ratio = (logprobs - rollout_logprobs) * mask
    return {"fresh_kl": (torch.exp(log_ratio) - 1 - log_ratio).sum().detach(), "fresh_tokens": mask.sum()}
