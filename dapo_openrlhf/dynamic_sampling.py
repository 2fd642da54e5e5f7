"""Dynamic sampling: which groups carry a gradient (DAPO eq. 11; layer 0: standard library only)."""

from __future__ import annotations

from dapo_openrlhf.types import RolloutGroup, Verdict

KEPT = "kept"
ALL_RIGHT = "all_right"
ALL_WRONG = "all_wrong"


class GroupFilter:
    """Keeps a group iff ``0 < #correct < G``.

    The test is on raw accuracy, before any length shaping: shaped rewards can differ within a group whose answers
    are all right or all wrong, and such a group would teach length only. With ``enabled=False`` every group is kept.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled

    def judge(self, group: RolloutGroup) -> Verdict:
        """Decide on one scored group."""
        right = sum(rollout.correct for rollout in group.rollouts)
        if not self.enabled or 0 < right < len(group.rollouts):
            return Verdict(True, KEPT)
        return Verdict(False, ALL_RIGHT if right else ALL_WRONG)
