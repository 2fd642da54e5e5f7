"""Lengths of single responses where a log holds only their sum, as those of earlier versions do."""

from __future__ import annotations

import math
import random
from statistics import fmean

from dapo_openrlhf.plan.observed import Group, Life

SPREADS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
"""Standard deviations of the logarithm of lengths within a group that are tried."""


def fill_in(life: Life) -> str | None:
    """Give every group without them log-normal lengths with its sum, and return what that lacks; None if all have some.

    Their spread is the one with which the longest response of a batch is on average as long as the log says.
    """
    unknown = [group for group in life.groups.values() if not group.lengths]
    if not unknown:
        return None
    batches = [
        [life.groups[number] for number in step.batch.groups if number in life.groups]
        for step in life.steps
        if step.batch.groups
    ]
    longest = [step.batch.longest_response for step in life.steps if step.batch.groups]

    def misses(spread: float) -> float:
        dice = random.Random(0)
        made = [max((max(_drawn(group, spread, dice)) for group in groups), default=0) for groups in batches]
        return abs(fmean(made) - fmean(longest))

    spread = min(SPREADS, key=misses) if longest else SPREADS[5]
    dice = random.Random(0)
    most = max(longest, default=0)
    for group in unknown:
        lengths = _drawn(group, spread, dice)
        group.lengths = tuple(min(length, most) for length in lengths) if most else lengths
    return (
        f"{len(unknown)} groups were logged by an earlier version, without the length of each response and of the prompt: "
        f"responses are spread about their group's mean (log-normal, {spread:g}) so that the longest one of a batch is right, "
        "and prompts count as none, so ages and waiting for stragglers are rough"
    )


def _drawn(group: Group, spread: float, dice: random.Random) -> tuple[int, ...]:
    """Lengths with about the group's sum."""
    drawn = [math.exp(dice.gauss(0.0, spread)) for _ in range(group.responses)]
    scale = group.response_tokens / sum(drawn)
    return tuple(max(1, round(one * scale)) for one in drawn)
