"""Finds gold answers that the rule reward cannot read, so that it could decide on no response."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dapo_openrlhf.rewards.process import RewardProcess
from dapo_openrlhf.rewards.settings import RewardSettings

PROBE = r"Answer: \frac{\sqrt{1234577}}{89}+\pi^{3}"
"""A response with an answer that is no gold answer and can be compared with expressions only by algebra."""


def unreadable(golds: Iterable[str], settings: RewardSettings) -> Mapping[str, str]:
    """The unreadable gold answers with the rule's errors; one that takes longer than ``settings.timeout`` is
    unreadable.

    Raises ``RewardUnavailable``.
    """
    with RewardProcess(settings) as process:
        judged = {gold: process.score(PROBE, label=gold).error for gold in golds}
    return {gold: error for gold, error in judged.items() if error}
