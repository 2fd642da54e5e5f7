"""Advantages of individual tokens: rewards along a response, values, whitening (torch only).

Legend: B responses, T response positions (right-padded); ``present`` [B, T] is 1 where a response has a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def token_rewards(credits: Tensor, kl: Tensor, present: Tensor, *, kl_coef: float) -> Tensor:
    """Rewards [B, T]: each response's credit [B] at its last token, minus ``kl_coef`` times ``kl`` [B, T] at each.

    The KL penalty in the reward is arXiv 1909.08593, eq. 2. Every response has at least one token.
    """
    last = present.sum(-1, keepdim=True).long() - 1
    return (-kl_coef * kl * present).scatter_add(-1, last, credits[:, None].to(kl.dtype))


def gae(rewards: Tensor, values: Tensor, present: Tensor, *, gamma: float, lambd: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both [B, T], 0 beyond a response.

    ``A_t = sum_l (gamma lambd)^l delta_{t+l}`` with ``delta_t = r_t + gamma V_{t+1} - V_t``: arXiv 1506.02438, eq. 16;
    PPO (arXiv 1707.06347), eqs. 11 and 12. A response ends its episode: the value after its last token is 0, also
    where it was truncated. The returns ``A_t + V_t`` are what the critic learns. With values 0 and ``lambd`` 1 the
    advantages are the (discounted) rewards to go.
    """
    rewards, values = rewards * present, values * present
    advantages = torch.zeros_like(rewards)
    following_value = following_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = delta + gamma * lambd * following_advantage
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, (advantages + values) * present


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """[3] float64: number, sum and sum of squares where ``mask`` is 1. The moments of several parts can be added."""
    values, mask = values.double(), mask.double()
    return torch.stack([mask.sum(), (values * mask).sum(), (values.square() * mask).sum()])


def whiten(values: Tensor, totals: Tensor, *, scale: bool) -> Tensor:
    """``values`` minus the mean and, with ``scale``, over the standard deviation that ``totals`` (moments) give.

    The variance is the population's, at least 1e-8: equal values become 0.
    """
    count, total, squares = (float(moment) for moment in totals)
    mean = total / max(count, 1.0)
    variance = max(squares / max(count, 1.0) - mean**2, 1e-8)
    return (values - mean) / (math.sqrt(variance) if scale else 1.0)
