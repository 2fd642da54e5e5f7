"""Estimates of the distance to a reference policy (torch only)."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import KlEstimator

LARGEST = 10.0
"""Nats per token beyond which an estimate and its gradient are cut, as ``exp`` would let a single token dominate."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KlEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled; same shape as the arguments.

    With ``x = logprobs - ref_logprobs`` (J. Schulman, "Approximating KL divergence"): k1 is ``x``, unbiased and of
    either sign; k2 is ``x^2 / 2``, whose gradient is that of the KL; k3 is ``exp(-x) - 1 + x``, unbiased and never
    negative: GRPO eq. 4 (arXiv 2402.03300).
    """
    x = logprobs - ref_logprobs
    match estimator:
        case "k1":
            estimate = x
        case "k2":
            estimate = x.square() / 2
        case "k3":
            bounded = x.clamp(min=-LARGEST)  # exp(10) is beyond LARGEST already; exp(100) would make the gradient nan
            estimate = torch.exp(-bounded) - 1 + bounded
        case _:
            assert_never(estimator)
    return estimate.clamp(-LARGEST, LARGEST)
