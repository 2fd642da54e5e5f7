"""Which gold answers the rule reward cannot read, and would leave every response to undecided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dapo_openrlhf.rewards.process import RewardProcess
from dapo_openrlhf.rewards.settings import RewardSettings

PROBE = r"Answer: \frac{\sqrt{1234577}}{89}+\pi^{3}"
"""A response whose answer is no gold one, and that neither text nor exact numbers tell from an expression."""


def unreadable(golds: Iterable[str], settings: RewardSettings) -> Mapping[str, str]:
    """Those golds with what the rule says of them; a gold that takes longer than ``settings.timeout`` is one.

    Raises ``RewardUnavailable``.
    """
    with RewardProcess(settings) as process:
        judged = {gold: process.score(PROBE, label=gold).error for gold in golds}
    return {gold: error for gold, error in judged.items() if error}
