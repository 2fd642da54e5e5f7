"""Group-relative advantages (pure Python: a group is a handful of numbers)."""

from __future__ import annotations

import math
from collections.abc import Sequence

STD_EPSILON = 1e-6


def group_norm(rewards: Sequence[float]) -> list[float]:
    """Group-normalised advantage of each response, ``(R_i - mean R) / (std R + 1e-6)``.

    DAPO eq. 9 (GRPO, arXiv 2402.03300, the same). ``rewards`` are the G >= 2 shaped rewards of one prompt; the
    standard deviation is the sample's (G - 1), as in the public recipe and in OpenRLHF. All advantages are 0 where
    all rewards are equal.
    """
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least 2 rewards, got {len(rewards)}")
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)  # rounding of the mean would leave 1e-10, which Adam would take for a gradient
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    std = math.sqrt(math.fsum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (std + STD_EPSILON) for c in centred]
