"""Handles a rank's updates with numbers that are not finite (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from collections.abc import Mapping

from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.backend.trainer.bad_batch import write_rank
from dapo_openrlhf.backend.trainer.per_sample import Known
from dapo_openrlhf.backend.trainer.step_settings import GuardSettings
from dapo_openrlhf.backend.trainer.tally import Verdict
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome, folder_of
from dapo_openrlhf.pipeline.batch import RankPlan

MOST_WRITTEN = 20
"""Maximum number of stopped updates whose batches a rank writes to files."""


class Guard:
    """Counts updates that were stopped, and writes their batches to files."""

    def __init__(self, settings: GuardSettings, *, rank: int, loss_scaled: bool) -> None:
        """``loss_scaled``: gradients overflow now and then without anything being wrong."""
        self._settings = settings
        self._rank = rank
        self._loss_scaled = loss_scaled
        self._bad_in_a_row = self._bad = 0

    @property
    def gives_up(self) -> bool:
        """Whether so many updates in a row were stopped that no other is tried."""
        return self._bad_in_a_row >= self._settings.max_bad_updates

    def outcome(
        self, verdict: Verdict, plan: RankPlan, position: int, tokens: Mapping[int, GroupTokens], known: Known
    ) -> UpdateOutcome:
        """The outcome of the plan's update at ``position``.

        If it was stopped, its samples, with their ``tokens`` and what is ``known`` of them, are written to a file.
        """
        if verdict.overflow and self._loss_scaled:
            return UpdateOutcome(not_finite=verdict.not_finite, overflow=True)
        if verdict.sound:
            self._bad_in_a_row = 0
            return UpdateOutcome(not_finite={})
        self._bad_in_a_row += 1
        self._bad += 1
        folder = folder_of(self._settings.folder, plan.step, position)
        if self._bad > MOST_WRITTEN:
            problem = f"{MOST_WRITTEN} batches are written down already"
            return UpdateOutcome(not_finite=verdict.not_finite, problem=problem)
        try:
            write_rank(folder, self._rank, plan.updates[position], tokens, known)
        except OSError as error:
            problem = f"its batch could not be written to {folder}: {error}"
            return UpdateOutcome(not_finite=verdict.not_finite, problem=problem)
        return UpdateOutcome(not_finite=verdict.not_finite)
