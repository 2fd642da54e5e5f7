"""Which rollout steps a run does, and after which of them it evaluates and saves (standard library)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps are counted from the first one of the run, also where it is resumed."""

    max_steps: int
    eval_steps: int = -1
    """Steps from one evaluation to the next; -1: before the first and after the last step only."""
    save_steps: int = -1
    """Steps from one checkpoint to the next; -1: none."""
    first_step: int = 0
    """Rollout steps that an earlier run has done."""

    @property
    def steps(self) -> range:
        """The steps to do."""
        return range(self.first_step, self.max_steps)

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints; then the last step has one too."""
        return self.save_steps > 0

    def evaluate_after(self, done: int) -> bool:
        """Whether an evaluation begins once ``done`` steps are done; the one at the end is a matter of its own."""
        return done < self.max_steps and self.eval_steps > 0 and done % self.eval_steps == 0

    def save_after(self, done: int) -> bool:
        """Whether a checkpoint is made once ``done`` steps are done; the one at the end is a matter of its own."""
        return done < self.max_steps and self.saves and done % self.save_steps == 0
