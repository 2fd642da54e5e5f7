"""Moving averages of curves (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def smoothing_window(steps: int) -> int:
    """Number of steps in a moving average: odd, about a fifteenth of the run, 3 to 31; 1 for less than 10 steps."""
    return 1 if steps < 10 else min(max(2 * (steps // 30) + 1, 3), 31)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average over ``window`` entries (fewer at the ends) that skips NaN; NaN stays NaN."""
    half = window // 2
    averages = []
    for middle, value in enumerate(values):
        near = [v for v in values[max(middle - half, 0) : middle + half + 1] if math.isfinite(v)]
        averages.append(sum(near) / len(near) if math.isfinite(value) else math.nan)
    return averages
