"""The objectives of policy losses, one per value of ``actor.policy_loss_type`` (torch only).

Legend: B responses, T response positions (right-padded); ``mask`` [B, T] is 1 on trained tokens; r is a token's ratio of the
policy being trained to the one in the denominator, A its advantage. Losses are minus the objective that a paper gives; the
weights of importance sampling and of the aggregation multiply them later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import PolicyLossType
from dapo_openrlhf.algorithm.loss import LARGEST_LOG_RATIO, clipped_surrogate, policy_ratio, response_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far an objective lets the policy go; each kind of loss reads its own."""

    eps_low: float
    eps_high: float
    """The range of a ratio is ``[1 - eps_low, 1 + eps_high]``."""
    dual_clip: float | None = None
    delta: float = 0.15
    """Largest change of a token's probability, for ``dppo_tv``."""
    tau: tuple[float, float] = (1.05, 1.0)
    """Temperatures of ``sapo`` for negative and for positive advantages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The log-probs [B, T] of the same tokens under the policies that a loss compares."""

    logprobs: Tensor
    """Of the policy being trained; the only ones with a gradient."""
    denominator: Tensor
    """Of the policy in the ratio's denominator."""
    rollout: Tensor
    """Of the policy that sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an objective gives for each token, [B, T] each."""

    losses: Tensor
    decided: Tensor
    """Whether a limit decided the loss, by clipping, truncating or dropping it."""
    ratio: Tensor
    """The token's or the response's ratio."""


def objective(kind: PolicyLossType, policies: Policies, advantages: Tensor, mask: Tensor, limits: Limits) -> Objective:
    """The losses of a kind; ``advantages`` broadcasts to [B, T]. Sources are with each kind's function."""
    ratio = policy_ratio(policies.logprobs, policies.denominator, mask, level=kind)
    match kind:
        case "ppo" | "gspo":
            losses, decided = clipped_surrogate(
                ratio, advantages, eps_low=limits.eps_low, eps_high=limits.eps_high, dual_clip=limits.dual_clip
            )
        case "cispo":
            losses, decided = _cispo(ratio, policies.logprobs, advantages, limits)
        case "dppo_tv":
            losses, decided = _dppo_tv(ratio, policies, advantages, limits)
        case "sapo":
            losses, decided = _sapo(ratio, advantages, limits)
        case "gmpo":
            losses, decided = _gmpo(policies, advantages, mask, limits)
        case _:
            assert_never(kind)
    return Objective(losses=losses, decided=decided, ratio=ratio)


def _cispo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """``-sg(min(r, 1 + eps_high)) A log pi``: arXiv 2506.13585, which leaves out the lower bound.

    The ratio is a weight without gradient, so every token keeps its gradient, of a truncated size. The loss's value says
    nothing: it is the gradient that is meant.
    """
    highest = 1 + limits.eps_high
    return -ratio.clamp(max=highest).detach() * advantages * logprobs, (ratio > highest).expand_as(logprobs)


def _dppo_tv(ratio: Tensor, policies: Policies, advantages: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """``-r A``, but 0 where the probability has moved from the rollout's by more than delta in the direction of A.

    arXiv 2602.04879, with the binary total variation. A rare token may multiply its probability, which a
    bound of the ratio forbids; a likely one may not lose a large part of its mass, which that bound allows.
    """
    moved = (policies.logprobs.exp() - policies.rollout.exp()).detach()
    beyond = ((advantages > 0) & (moved > limits.delta)) | ((advantages < 0) & (moved < -limits.delta))
    return torch.where(beyond, torch.zeros_like(ratio), -ratio * advantages), beyond


def _sapo(ratio: Tensor, advantages: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """``-(4 / tau) sigmoid(tau (r - 1)) A``: arXiv 2511.20347.

    A soft gate in place of clipping: the gradient of r is 1 at r = 1 and falls off on both sides, the sooner the larger
    tau, of which negative advantages have their own.
    """
    negative, positive = limits.tau
    tau = torch.where(advantages > 0, positive, negative).to(ratio.dtype)
    losses = -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages
    return losses, torch.zeros_like(losses, dtype=torch.bool)


def _gmpo(policies: Policies, advantages: Tensor, mask: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """``-A`` times the geometric mean of a response's ratios, each clipped in the direction of A: arXiv 2507.20673.

    The range is that of a ratio, as everywhere here: the paper's ``(e^-0.4, e^0.4)`` is eps_low 0.33, eps_high 0.49.
    """
    log_ratio = policies.logprobs - policies.denominator
    lowest = math.log1p(-limits.eps_low) if limits.eps_low < 1 else -LARGEST_LOG_RATIO
    rising = advantages > 0
    clipped = torch.where(rising, log_ratio.clamp(max=math.log1p(limits.eps_high)), log_ratio.clamp(min=lowest))
    mean = response_mean(clipped * mask, mask).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return -torch.exp(mean) * advantages, clipped != log_ratio
