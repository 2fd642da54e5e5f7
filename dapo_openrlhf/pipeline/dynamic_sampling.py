"""Dynamic sampling: which groups carry a gradient, how many to dispatch for them (DAPO eq. 11; standard library)."""

from __future__ import annotations

from collections import deque

from dapo_openrlhf.types import FilterDecision, RolloutGroup

KEPT = "kept"
ALL_RIGHT = "all_right"
"""Reason of a group whose mean score is at or above the range: with (0, 1), all of its responses are right."""
ALL_WRONG = "all_wrong"
"""Reason of a group whose mean score is at or below the range: with (0, 1), all of its responses are wrong."""
SURPLUS = "surplus"
"""Reason of a group that over-sampling dispatched and that turned out not to be needed."""

WINDOW_BATCHES = 8
"""The pass rate is measured over this many batches' worth of groups, kept and dropped together. With 2 it varies so much
that a fifth of what the engines generate is surplus."""
MOST_OVER_SAMPLING = 8.0
CAUTION = 0.85
"""Share of the groups called for by the pass rate that is dispatched at once; the rest follows as groups are dropped.
In simulation (P = 16, pass rate 40 %) 1.0 is no faster and wastes twice as much, 7 % of the groups instead of 3 %."""


class GroupFilter:
    """Keeps a group iff ``0 < #correct < G`` (eq. 11), or, given a range, iff ``low < mean score < high`` as OpenRLHF does.

    Scores are 1 for right and 0 for wrong, or what a user's reward gives as ``scores``. Groups are tested before any
    length shaping: shaped rewards can differ within a group whose answers are all right or all wrong, and such a group
    would teach length only. With ``enabled=False`` every group is kept.
    """

    def __init__(self, *, enabled: bool, score_range: tuple[float, float] | None = None) -> None:
        self.enabled = enabled
        self._range = score_range

    def decide(self, group: RolloutGroup) -> FilterDecision:
        """Decide on one scored group."""
        score, (low, high) = self._score(group)
        if not self.enabled or low < score < high:
            return FilterDecision(True, KEPT)
        return FilterDecision(False, ALL_WRONG if score <= low else ALL_RIGHT)

    def pass_rate(self, group: RolloutGroup) -> float:
        """Where the group stands between the ends of the range, 0 to 1: without a range, the share of right responses."""
        score, (low, high) = self._score(group)
        return min(1.0, max(0.0, (score - low) / (high - low)))

    def _score(self, group: RolloutGroup) -> tuple[float, tuple[float, float]]:
        return (group.accuracy, (0.0, 1.0)) if self._range is None else (group.mean_score, self._range)


class OverSampling:
    """Decides how many groups to have in flight for each one that is to be kept.

    Either a fixed ``factor`` >= 1, or with None the inverse of the pass rate of the last ``window`` judged groups,
    reduced a little as a precaution, from 1 to ``MOST_OVER_SAMPLING``; it is 1 until a quarter of a window has been
    judged.
    """

    def __init__(self, *, factor: float | None, window: int) -> None:
        if factor is not None and not factor >= 1:
            raise ValueError(f"the over-sampling factor is at least 1, not {factor}")
        self._fixed = factor
        self._window = window
        self._judged: deque[bool] = deque()  # whether each group of the window was kept
        self._kept = 0  # how many of these were

    def observe(self, decision: FilterDecision) -> None:
        """Learn from one judged group."""
        self._judged.append(decision.keep)
        self._kept += decision.keep
        if len(self._judged) > self._window:
            self._kept -= self._judged.popleft()

    @property
    def factor(self) -> float:
        """Number of groups to have in flight for each one that is to be kept, at least 1."""
        if self._fixed is not None:
            return self._fixed
        judged = len(self._judged)
        if judged < max(1, self._window // 4):
            return 1.0
        return min(max(1.0, CAUTION * judged / max(1, self._kept)), MOST_OVER_SAMPLING)
