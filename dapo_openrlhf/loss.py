"""Policy losses (layer 1: torch only). Tensors in, (scalar, sums) out; no rank, no collective, no configuration.

Legend: B responses, T response positions (right-padded); ``mask`` [B, T] is 1 on trained tokens.

Three log-probs, three names:

* ``logprobs`` - of the weights being trained; the only one with a gradient;
* ``old_logprobs`` - of the trainer's weights at the start of the rollout step: the denominator of the ratio;
* ``rollout_logprobs`` - of the weights that sampled, as reported by vLLM.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Sums = dict[str, Tensor]
"""Metrics as sums over trained tokens, so that micro-batches and ranks add up; divide by ``tokens``."""


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Per-token loss [B, T] and whether clipping decided it [B, T].

    ``-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)`` with ``r = exp(logprobs - old_logprobs)``: DAPO eqs. 8 and 10;
    PPO's (arXiv 1707.06347, eq. 7) where both eps are equal. With ``dual_clip`` c > 1, ``c A`` bounds the objective
    from below for A < 0 (arXiv 1912.09729, eq. 5). ``advantages`` broadcasts to [B, T].
    """
    ratio = torch.exp(logprobs - old_logprobs)
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


def aggregate(
    token_losses: Tensor,
    mask: Tensor,
    *,
    mode: Literal["token-mean", "seq-mean-token-mean"],
    total_tokens: int,
    total_responses: int,
) -> Tensor:
    """Sum a micro-batch's token losses [B, T] to its share of the update's loss.

    ``token-mean`` (DAPO eq. 12): divided by all trained tokens of the update. ``seq-mean-token-mean`` (GRPO, DAPO
    eq. 5): each response's mean, divided by all trained responses of the update. The denominators are the whole
    update's, so that shares add up to the same loss however it is cut. An update without trained tokens has loss 0.
    """
    if mode == "token-mean":
        return (token_losses * mask).sum() / max(total_tokens, 1)
    per_response = (token_losses * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return per_response.sum() / max(total_responses, 1)


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Literal["off", "token", "seq"],
    mode: Literal["clip", "mask"],
    threshold: tuple[float, float],
) -> tuple[Tensor, Sums]:
    """Weights [B, T] ``old / rollout`` that correct for what sampled not being what trains; no gradient.

    The cause is staleness (rollouts by an older version) and engines that compute otherwise than the trainer.
    ``level`` token: each token's ratio; seq: the response's geometric mean ratio on each of its tokens. ``mode`` clip
    truncates to ``threshold`` = (low, high) (truncated importance sampling), mask zeroes what is outside.
    ``off`` gives ones, with the statistics all the same. Sums: ``is_weight``, ``is_weight_squared`` (for the
    effective sample size), ``is_outside``, and ``rollout_kl``, the k3 estimate of KL(rollout || old), >= 0.
    """
    log_ratio = (old_logprobs - rollout_logprobs) * mask
    ratio = torch.exp(log_ratio)
    kl = (ratio - 1 - log_ratio) * mask
    if level == "seq":
        log_mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        ratio = torch.exp(log_mean).expand_as(mask)
    low, high = threshold
    outside = (ratio < low) | (ratio > high)
    if level == "off":
        weights = torch.ones_like(ratio)
    elif mode == "clip":
        weights = ratio.clamp(low, high)
    else:
        weights = torch.where(outside, torch.zeros_like(ratio), ratio)
    weights = weights.detach()
    sums = {
        "is_weight": (weights * mask).sum(),
        "is_weight_squared": (weights.square() * mask).sum(),
        "is_outside": (outside * mask).sum(),
        "rollout_kl": kl.sum(),
    }
    return weights, {name: value.detach() for name, value in sums.items()}
