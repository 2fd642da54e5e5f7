"""The policy loss of one micro-batch, put together from its parts (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import POLICY_LOSSES
from dapo_openrlhf.algorithm.correction import importance_weights, interpolated_logprobs
from dapo_openrlhf.algorithm.kl import kl_estimate, unbiased_kl
from dapo_openrlhf.algorithm.loss import Sums, aggregate, disagreement
from dapo_openrlhf.algorithm.objective import Limits, Policies, objective
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
    progress: float = 0.0,
) -> tuple[Tensor, Sums]:
    """A micro-batch's share of its update's loss, and sums over its trained tokens.

    ``logprobs`` and ``entropies`` [B, T] belong to the weights being trained; in a step's ``first`` update these are
    the initial ones. ``total_tokens`` counts the whole update's; ``progress`` is the share of the step's updates that are
    done. Advantages, old and reference log-probabilities are in
    ``known`` by sample; if there are no advantages, every token has its response's.
    """
    mask = batch.mask
    old_logprobs = _old_logprobs(batch, logprobs, known, settings, first=first, progress=progress)
    # A response's ratio (GSPO) is corrected in its denominator, as in OpenRLHF, and then needs no weight.
    of_response = POLICY_LOSSES[settings.policy_loss_type].of_response
    weights, sums = importance_weights(
        old_logprobs,
        batch.rollout_logprobs,
        mask,
        level="off" if of_response else settings.is_correction_level,
        mode=settings.is_correction_mode,
        threshold=settings.is_correction_threshold,
        gating=settings.is_correction_gating,
        cap=settings.is_correction_cap,
        largest_square=known.largest_square,
    )
    sampled = of_response and settings.is_correction_level != "off"
    denominator = batch.rollout_logprobs if sampled else old_logprobs
    policies = Policies(logprobs=logprobs, denominator=denominator, rollout=batch.rollout_logprobs)
    tokens = objective(settings.policy_loss_type, policies, advantages_of(batch, known), mask, _limits(settings))
    loss = aggregate(tokens.losses * weights, mask, batch.weights)
    if known.ref_logprobs:
        reference = recall(known.ref_logprobs, batch.samples, like=mask)
        kl = _kl(logprobs, reference, old_logprobs, settings)
        sums["kl"] = (kl.detach() * mask).sum()
        # As in OpenRLHF: a mean over the update's tokens without importance weights, however the rest is aggregated.
        loss = loss + settings.kl_coef * aggregate(kl, mask, torch.tensor(1 / max(total_tokens, 1)))
    if settings.entropy_coef:  # a mean over tokens, too
        loss = loss - settings.entropy_coef * aggregate(entropies, mask, torch.tensor(1 / max(total_tokens, 1)))
    if first or settings.old_logprobs == "recompute":  # else the first weights' log-probs are unknown
        begun = logprobs.detach() if first else old_logprobs
        sums |= disagreement(begun, batch.rollout_logprobs, mask * batch.fresh)
    return loss, sums | {
        "tokens": mask.sum(),
        "loss": loss.detach(),
        "entropy": (entropies.detach() * mask).sum(),
        "token_probability": (logprobs.detach().exp() * mask).sum(),
        "clip_fraction": (tokens.decided * mask).sum(),
        "ratio": (tokens.ratio.detach() * mask).sum(),
    }


def _old_logprobs(
    batch: Tensors, logprobs: Tensor, known: Known, settings: LossSettings, *, first: bool, progress: float
) -> Tensor:
    """Log-probs [B, T] of the ratio's denominator before any correction."""
    match settings.old_logprobs:
        case "rollout":
            return batch.rollout_logprobs
        case "recompute":
            return logprobs.detach() if first else recall(known.old_logprobs, batch.samples, like=batch.mask)
        case "interpolate":
            ages = known.version - batch.token_versions()
            return interpolated_logprobs(logprobs, batch.rollout_logprobs, ages, progress=progress)
        case _:
            assert_never(settings.old_logprobs)


def _kl(logprobs: Tensor, reference: Tensor, old_logprobs: Tensor, settings: LossSettings) -> Tensor:
    if settings.kl_unbiased:
        return unbiased_kl(logprobs, reference, old_logprobs, estimator=settings.kl_estimator)
    return kl_estimate(logprobs, reference, estimator=settings.kl_estimator)


def _limits(settings: LossSettings) -> Limits:
    eps_low, eps_high = settings.eps_clip_low_high
    return Limits(
        eps_low=eps_low,
        eps_high=eps_high,
        dual_clip=settings.dual_clip,
        delta=settings.dppo_delta,
        tau=settings.sapo_tau,
    )
