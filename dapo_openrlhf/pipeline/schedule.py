"""The rollout steps of a run, and after which of them it evaluates and saves (standard library)."""

from __future__ import annotations

from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.ending import Ending, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The schedule of a run. Steps are counted from the first one of the run, also where it is resumed."""

    max_steps: int
    eval_steps: int = -1
    """Number of steps from one evaluation to the next; -1: only before the first and after the last step."""
    save_steps: int = -1
    """Number of steps from one checkpoint to the next; -1: no checkpoints."""
    first_step: int = 0
    """Number of rollout steps that an earlier run, or an earlier trainer of this run, has done."""
    evaluates_first: bool = True
    """Whether the weights at the first step are still to be measured."""
    ending: Ending = field(default_factory=lambda: Ending(Limits()))
    """What may end the run before its last step."""

    @property
    def steps(self) -> range:
        """The rollout steps still to do."""
        return range(self.first_step, self.max_steps)

    @property
    def saves(self) -> bool:
        """Whether checkpoints are made; if so, also after the last step."""
        return self.save_steps > 0

    def evaluate_after(self, done: int) -> bool:
        """Whether an evaluation begins once ``done`` steps are done; the one at the end of the run is separate."""
        return done < self.max_steps and self.eval_steps > 0 and done % self.eval_steps == 0

    def save_after(self, done: int) -> bool:
        """Whether a checkpoint is made once ``done`` steps are done; the one at the end of the run is separate."""
        return done < self.max_steps and self.saves and done % self.save_steps == 0
