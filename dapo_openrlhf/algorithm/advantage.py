"""Advantages of the responses of a group (pure Python: a group is a handful of numbers).

Legend: ``rewards`` are the G shaped rewards of one prompt's responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from dapo_openrlhf.algorithm.choices import ESTIMATORS, EstimatorName

STD_EPSILON = 1e-9


def group_norm(rewards: Sequence[float]) -> list[float]:
    """Group-normalised advantage of each response, ``(R_i - mean R) / (std R + 1e-9)``.

    DAPO eq. 9 (GRPO, arXiv 2402.03300, the same). Needs G >= 2; the standard deviation is the sample's (G - 1), as
    in the public recipe and in OpenRLHF. All advantages are 0 where all rewards are equal.
    """
    centred = mean_only(rewards)
    std = math.sqrt(math.fsum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (std + STD_EPSILON) for c in centred]


def mean_only(rewards: Sequence[float]) -> list[float]:
    """``R_i - mean R``: Dr. GRPO (arXiv 2503.20783, section 3.2). Needs G >= 2; 0 where all rewards are equal."""
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least 2 rewards, got {len(rewards)}")
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)  # rounding of the mean would leave 1e-10, which Adam would take for a gradient
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """``R_i`` minus the mean of the other G - 1 rewards: RLOO (arXiv 2402.14740, the estimator after eq. 8).

    Needs G >= 2. The same as ``G / (G - 1)`` times :func:`mean_only`, which is how it is computed.
    """
    centred = mean_only(rewards)
    return [c * len(rewards) / (len(rewards) - 1) for c in centred]


def plain(rewards: Sequence[float]) -> list[float]:
    """The rewards unchanged: trainer ranks turn them into advantages with a critic, or by whitening."""
    return list(rewards)


CREDITS: Mapping[EstimatorName, Callable[[Sequence[float]], list[float]]] = {
    "group_norm": group_norm,
    "dr_grpo": mean_only,
    "rloo": leave_one_out,
    "reinforce_baseline": mean_only,
    "reinforce": plain,
    "flash_reinforce": plain,
    "gae": plain,
}
"""For each estimator the function that turns a group's rewards into one credit per response."""


def batch_credits(
    groups: Sequence[Sequence[float]], *, estimator: EstimatorName, clip_range: tuple[float, float] | None = None
) -> list[list[float]]:
    """The credit of each response of a batch, whose ``groups`` hold the shaped rewards of a prompt's responses each.

    ``flash_reinforce`` subtracts the mean of all rewards of the batch (OpenRLHF's estimator for single responses).
    ``clip_range`` bounds credits, after the baseline as in OpenRLHF.
    """
    credits = [CREDITS[estimator](rewards) for rewards in groups]
    if ESTIMATORS[estimator].batch_baseline:
        every = [reward for rewards in groups for reward in rewards]
        mean = math.fsum(every) / len(every)
        same = len(set(every)) == 1  # as in mean_only, rounding is no gradient
        credits = [[0.0 if same else credit - mean for credit in group] for group in credits]
    if clip_range is not None:
        low, high = clip_range
        credits = [[min(max(credit, low), high) for credit in group] for group in credits]
    return credits
