"""The policy loss of one micro-batch, put together from its parts (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import POLICY_LOSSES
from dapo_openrlhf.algorithm.kl import kl_estimate
from dapo_openrlhf.algorithm.loss import (
    Sums,
    aggregate,
    clipped_surrogate,
    disagreement,
    importance_weights,
    policy_ratio,
)
from dapo_openrlhf.backend.trainer.collate import Tensors
from dapo_openrlhf.backend.trainer.per_sample import Known, recall
from dapo_openrlhf.backend.trainer.step_settings import LossSettings


def advantages_of(batch: Tensors, known: Known) -> Tensor:
    """Advantages [B, T] of each token if these were computed, otherwise [B, 1] of each response."""
    return recall(known.advantages, batch.samples, like=batch.mask) if known.advantages else batch.advantages


def policy_loss(
    batch: Tensors,
    logprobs: Tensor,
    entropies: Tensor,
    known: Known,
    settings: LossSettings,
    *,
    total_tokens: int,
    first: bool,
) -> tuple[Tensor, Sums]:
    """A micro-batch's share of its update's loss, and sums over its trained tokens.

    ``logprobs`` and ``entropies`` [B, T] belong to the weights being trained; in a step's ``first`` update these are
    the initial ones. ``total_tokens`` counts the whole update's. Advantages, old and reference log-probabilities are in
    ``known`` by sample; if there are no advantages, every token has its response's.
    """
    mask = batch.mask
    match settings.old_logprobs:
        case "rollout":
            old_logprobs = batch.rollout_logprobs
        case "recompute":
            old_logprobs = logprobs.detach() if first else recall(known.old_logprobs, batch.samples, like=mask)
        case _:
            assert_never(settings.old_logprobs)
    # A response's ratio (GSPO) is corrected in its denominator, as in OpenRLHF, and then needs no weight.
    of_response = POLICY_LOSSES[settings.policy_loss_type].of_response
    weights, sums = importance_weights(
        old_logprobs,
        batch.rollout_logprobs,
        mask,
        level="off" if of_response else settings.is_correction_level,
        mode=settings.is_correction_mode,
        threshold=settings.is_correction_threshold,
    )
    sampled = of_response and settings.is_correction_level != "off"
    denominator = batch.rollout_logprobs if sampled else old_logprobs
    ratio = policy_ratio(logprobs, denominator, mask, level=settings.policy_loss_type)
    advantages = advantages_of(batch, known)
    eps_low, eps_high = settings.eps_clip_low_high
    losses, decided = clipped_surrogate(
        ratio, advantages, eps_low=eps_low, eps_high=eps_high, dual_clip=settings.dual_clip
    )
    loss = aggregate(losses * weights, mask, batch.weights)
    if known.ref_logprobs:
        reference = recall(known.ref_logprobs, batch.samples, like=mask)
        kl = kl_estimate(logprobs, reference, estimator=settings.kl_estimator)
        sums["kl"] = (kl.detach() * mask).sum()
        # As in OpenRLHF: a mean over the update's tokens without importance weights, however the rest is aggregated.
        loss = loss + settings.kl_coef * aggregate(kl, mask, torch.tensor(1 / max(total_tokens, 1)))
    if first or settings.old_logprobs == "recompute":  # else the first weights' log-probs are unknown
        begun = logprobs.detach() if first else old_logprobs
        sums |= disagreement(begun, batch.rollout_logprobs, mask * batch.fresh)
    return loss, sums | {
        "tokens": mask.sum(),
        "loss": loss.detach(),
        "entropy": (entropies * mask).sum(),
        "token_probability": (logprobs.detach().exp() * mask).sum(),
        "clip_fraction": (decided * mask).sum(),
        "ratio": (ratio.detach() * mask).sum(),
    }
