"""Estimates of the distance to a reference policy (torch only)."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import KlEstimator

LARGEST = 10.0
"""Nats per token beyond which an estimate and its gradient are cut, as ``exp`` would let a single token dominate."""


LARGEST_WEIGHT = 10.0
"""Bound of the importance weight in :func:`unbiased_kl`; OpenRLHF's."""


def unbiased_kl(logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor, *, estimator: KlEstimator) -> Tensor:
    """The value of :func:`kl_estimate` with the gradient of KL(policy || reference), whatever the estimator.

    The gradient is ``w x grad log pi`` with ``x = logprobs - ref_logprobs`` and the ratio ``w`` of the policy to the one
    that the loss takes for the sampling policy, at most :data:`LARGEST_WEIGHT` and without gradient; as in OpenRLHF's
    ``compute_approx_kl`` with ``unbiased_gradient``.
    """
    weight = torch.exp((logprobs - old_logprobs).detach().clamp(max=math.log(LARGEST_WEIGHT)))
    pulled = weight * (logprobs - ref_logprobs).square() / 2
    return kl_estimate(logprobs, ref_logprobs, estimator=estimator).detach() + pulled - pulled.detach()


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
