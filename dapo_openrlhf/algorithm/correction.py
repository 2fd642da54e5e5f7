"""Corrections for tokens that other weights, or an engine's arithmetic, have sampled (torch only).

Legend: B responses, T response positions (right-padded); ``mask`` [B, T] is 1 on trained tokens. ``old_logprobs`` are those
of the trainer's weights at the start of the rollout step, ``rollout_logprobs`` those of the weights that sampled.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import CorrectionGating, CorrectionLevel, CorrectionMode
from dapo_openrlhf.algorithm.loss import LARGEST_LOG_RATIO, Sums, response_mean

CERTAIN = 1e-6
"""How near to 0 and 1 probabilities may come in a divergence, so that its logarithms are finite; OpenRLHF's."""

SQUARE_EDGES = (0.0, *(10 ** (exponent / 128) for exponent in range(-8 * 128, 3 * 128)))
"""Upper edges of the classes into which squared log ratios are counted: steps of 1.8 % from 1e-8 to 1e3, which is more than
:data:`LARGEST_LOG_RATIO` squared."""


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    level: CorrectionLevel,
    mode: CorrectionMode,
    threshold: tuple[float, float],
    gating: CorrectionGating = "ratio",
    cap: float | None = None,
    largest_square: float = math.inf,
) -> tuple[Tensor, Sums]:
    """Weights [B, T] ``old / rollout`` that correct for sampling from another policy than the one that trains; no
    gradient.

    The cause is staleness (rollouts by an older version) and engines that compute otherwise than the trainer. As in
    OpenRLHF (``models/loss.py``): weights are each token's own ratio. ``mode`` clip truncates them to ``threshold`` =
    (low, high) (truncated importance sampling); mask zeroes tokens for which ``gating`` is outside, or with ``level`` seq
    whole responses: ``ratio`` is the weight, of a response the geometric mean of its tokens'; ``binary_kl`` and ``tv`` are
    divergences between both policies that see each token as sampled or not, of a response their mean. What mask keeps
    is truncated to ``cap``, if there is one. ``second_moment`` (M2PO, arXiv 2510.01161) zeroes tokens whose squared log
    weight is above ``largest_square``, which :func:`largest_square_kept` gives. ``off`` gives ones, with the statistics
    all the same.

    Sums: ``is_weight``, ``is_weight_squared`` (for the effective sample size), ``is_outside``, and ``rollout_kl``, the k3
    estimate of KL(rollout || old), >= 0. Raises ``ValueError`` for clip with a level or a gating that only keeps or
    drops, and for ``second_moment`` of responses.
    """
    if mode == "clip" and level != "off" and (level == "seq" or gating != "ratio"):
        raise ValueError(f"level {level} with gating {gating} keeps or drops: there is nothing to clip")
    if gating == "second_moment" and level == "seq":
        raise ValueError("gating second_moment keeps or drops tokens, not responses")
    log_ratio = ((old_logprobs - rollout_logprobs) * mask).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio = torch.exp(log_ratio)
    kl = (ratio - 1 - log_ratio) * mask
    low, high = (0.0, largest_square) if gating == "second_moment" else threshold
    judged = _judged(old_logprobs, rollout_logprobs, log_ratio, mask, level=level, gating=gating)
    outside = (judged < low) | (judged > high)
    bounded = _bounded(ratio, outside, mode=mode, threshold=threshold, cap=cap)
    weights = (torch.ones_like(ratio) if level == "off" else bounded).detach()
    sums = {
        "is_weight": (weights * mask).sum(),
        "is_weight_squared": (weights.square() * mask).sum(),
        "is_outside": (outside * mask).sum(),
        "rollout_kl": kl.sum(),
    }
    return weights, {name: value.detach() for name, value in sums.items()}


def _judged(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    log_ratio: Tensor,
    mask: Tensor,
    *,
    level: CorrectionLevel,
    gating: CorrectionGating,
) -> Tensor:
    """The quantity [B, T] that the bounds are for."""
    match gating:
        case "ratio":
            return torch.exp(_at_level(log_ratio, mask, level))
        case "second_moment":
            return log_ratio.square()
        case "binary_kl" | "tv":
            sampled = rollout_logprobs.exp().clamp(CERTAIN, 1 - CERTAIN)
            trained = old_logprobs.exp().clamp(CERTAIN, 1 - CERTAIN)
            divergence = (sampled - trained).abs() if gating == "tv" else _binary_kl(sampled, trained)
            return _at_level(divergence, mask, level)
        case _:
            assert_never(gating)


def _at_level(values: Tensor, mask: Tensor, level: CorrectionLevel) -> Tensor:
    """The values of tokens, or of each response their mean."""
    match level:
        case "off" | "token":
            return values
        case "seq":
            return response_mean(values * mask, mask)
        case _:
            assert_never(level)


def _binary_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL between two coins that fall on the sampled token with probabilities ``p`` and ``q``."""
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def _bounded(
    ratio: Tensor, outside: Tensor, *, mode: CorrectionMode, threshold: tuple[float, float], cap: float | None
) -> Tensor:
    match mode:
        case "clip":
            return ratio.clamp(*threshold)
        case "mask":
            kept = torch.where(outside, torch.zeros_like(ratio), ratio)
            return kept if cap is None else kept.clamp(max=cap)
        case _:
            assert_never(mode)


def square_counts(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[2, len(SQUARE_EDGES)] float64: number and sum of the squared log weights in each class of :data:`SQUARE_EDGES`.

    The counts of several parts of a batch can be added up, so what follows from them does not depend on how it is cut.
    """
    log_ratio = (old_logprobs - rollout_logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    squares = log_ratio.square()[mask > 0].double()
    edges = torch.tensor(SQUARE_EDGES, dtype=torch.float64, device=squares.device)
    classes = torch.bucketize(squares, edges)
    counts = torch.zeros(2, len(edges), dtype=torch.float64, device=squares.device)
    counts[0].index_add_(0, classes, torch.ones_like(squares))
    counts[1].index_add_(0, classes, squares)
    return counts


def largest_square_kept(counts: Tensor, *, largest_mean: float) -> float:
    """The squared log weight above which tokens are masked, so that the mean over the others is at most ``largest_mean``.

    M2PO (arXiv 2510.01161) masks the tokens with the largest squares one after the other; here all of a
    class of :data:`SQUARE_EDGES` at once. Infinite if nothing needs to be masked.
    """
    numbers, totals = counts.cpu()
    means = totals.cumsum(0) / numbers.cumsum(0).clamp(min=1)
    kept = int((means <= largest_mean).sum())  # means never fall from one class to the next
    if kept == len(means):
        return math.inf
    return SQUARE_EDGES[kept - 1]


def interpolated_logprobs(logprobs: Tensor, rollout_logprobs: Tensor, ages: Tensor, *, progress: float) -> Tensor:
    """Estimated log-probs [B, T] of the weights at the start of the step, without a forward pass; no gradient.

    A-3PO (arXiv 2512.06547): ``log mu + alpha (log pi - log mu)`` with ``alpha = (v - v_mu) / (v_pi - v_mu)``, v the
    version at the start of the step, v_mu the one that sampled the token, v_pi the one being trained. ``ages`` [B, T]
    are ``v - v_mu``; ``progress`` is the share of the step's updates that are done, with which ``v_pi = v + progress``
    (the paper counts whole versions, ``v + 1`` from the first update on). So before the first update the estimate is exact,
    and a token that the step's own weights sampled has its rollout log-prob.
    """
    if progress == 0:
        return logprobs.detach()
    ages = ages.clamp(min=0).to(logprobs.dtype)
    return rollout_logprobs + ages / (ages + progress) * (logprobs.detach() - rollout_logprobs)
