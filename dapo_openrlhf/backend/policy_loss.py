"""The policy's loss of one micro-batch, from its parts (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from torch import Tensor

from dapo_openrlhf.backend.collate import Tensors
from dapo_openrlhf.backend.per_sample import Known, recall
from dapo_openrlhf.backend.step_settings import LossSettings
from dapo_openrlhf.kl import kl_estimate
from dapo_openrlhf.loss import Sums, aggregate, clipped_surrogate, importance_weights, policy_ratio


def advantages_of(batch: Tensors, known: Known) -> Tensor:
    """[B, T] of each token where they were worked out, else [B, 1] of each response."""
    return recall(known.advantages, batch.samples, like=batch.mask) if known.advantages else batch.advantages


def policy_loss(
    batch: Tensors, logprobs: Tensor, entropies: Tensor, known: Known, settings: LossSettings, *, first: bool
) -> tuple[Tensor, Sums]:
    """A micro-batch's share of its update's loss, and sums over its trained tokens.

    ``logprobs``, ``entropies`` [B, T] are of the weights being trained; in the ``first`` update of a step those still
    are the step's. Advantages, old and reference log-probs are ``known`` by sample; without advantages there every
    token has its response's.
    """
    mask = batch.mask
    if settings.old_logprobs == "rollout":
        old_logprobs = batch.rollout_logprobs
    else:
        old_logprobs = logprobs.detach() if first else recall(known.old_logprobs, batch.samples, like=mask)
    weights, sums = importance_weights(
        old_logprobs,
        batch.rollout_logprobs,
        mask,
        level=settings.is_correction_level,
        mode=settings.is_correction_mode,
        threshold=settings.is_correction_threshold,
    )
    ratio = policy_ratio(logprobs, old_logprobs, mask, level=settings.policy_loss_type)
    advantages = advantages_of(batch, known)
    eps_low, eps_high = settings.eps_clip_low_high
    losses, decided = clipped_surrogate(
        ratio, advantages, eps_low=eps_low, eps_high=eps_high, dual_clip=settings.dual_clip
    )
    if known.ref_logprobs:
        reference = recall(known.ref_logprobs, batch.samples, like=mask)
        kl = kl_estimate(logprobs, reference, estimator=settings.kl_estimator)
        losses = losses + settings.kl_coef * kl  # GRPO eq. 3
        sums["kl"] = (kl.detach() * mask).sum()
    loss = aggregate(losses * weights, mask, batch.weights)
    return loss, sums | {
        "tokens": mask.sum(),
        "loss": loss.detach(),
        "entropy": (entropies * mask).sum(),
        "token_probability": (logprobs.detach().exp() * mask).sum(),
        "clip_fraction": (decided * mask).sum(),
        "ratio": (ratio.detach() * mask).sum(),
    }
