"""Counts and records updates that were stopped because a number was not finite; too many in a row end the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.pipeline.events import UpdateSkipped
from dapo_openrlhf.types import RolloutGroup, TrainBatch

BATCH_FILE = "batch.json"


class TooManyBadUpdates(RuntimeError):
    """``train.max_bad_updates`` updates in a row were stopped; the message says why and where their batches are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOutcome:
    """The outcome of one update; the same on every trainer rank."""

    not_finite: Mapping[str, int]
    """How many numbers were not finite, by their names; empty for an update that was done."""
    overflow: bool = False
    """Whether the cause is the loss scale of fp16: nothing is wrong then, and a smaller scale is tried next."""
    problem: str = ""
    """Why the batch could not be written to disk; empty otherwise."""

    @property
    def bad(self) -> bool:
        """Whether the update counts as bad."""
        return bool(self.not_finite) and not self.overflow


def folder_of(parent: str | Path, step: int, update: int) -> Path:
    """The folder to which an update's batch is written."""
    return Path(parent) / f"step-{step:06d}-update-{update}"


class BadUpdates:
    """Watches the outcomes of updates."""

    def __init__(self, folder: str, *, most: int, on_event: Callable[[UpdateSkipped], None]) -> None:
        """``most``: bad updates in a row at which the run ends. ``folder``: parent of the batches' folders."""
        self._folder = folder
        self._most = most
        self._on_event = on_event
        self._in_a_row = 0

    def note(self, batch: TrainBatch, outcomes: Sequence[UpdateOutcome]) -> None:
        """Take in the outcomes of a step's updates, in order. Raises :class:`TooManyBadUpdates`."""
        for index, outcome in enumerate(outcomes):
            if outcome.overflow:
                continue
            self._in_a_row = self._in_a_row + 1 if outcome.bad else 0
            if outcome.bad:
                self._note_bad(batch, index, outcome)

    def _note_bad(self, batch: TrainBatch, update: int, outcome: UpdateOutcome) -> None:
        folder = folder_of(self._folder, batch.step, update)
        problem = outcome.problem or _write(folder, batch, update, outcome)
        event = UpdateSkipped(
            step=batch.step,
            update=update,
            not_finite=dict(outcome.not_finite),
            in_a_row=self._in_a_row,
            path="" if problem else str(folder),
            problem=problem,
        )
        self._on_event(event)
        if self._in_a_row >= self._most:
            raise TooManyBadUpdates(
                f"step {batch.step}: {self._in_a_row} updates in a row had numbers that are not finite (train.max_bad_updates "
                f"{self._most}), the last one's {words(outcome.not_finite)}; none of them reached the weights, checkpoints are "
                f"as they were; look at the batches in {self._folder}, then go on from the last checkpoint with --resume"
            )


def words(not_finite: Mapping[str, int]) -> str:
    """The counts of numbers that are not finite as a phrase."""
    return ", ".join(f"{name} ({count})" for name, count in not_finite.items())


def _write(folder: Path, batch: TrainBatch, update: int, outcome: UpdateOutcome) -> str:
    """Write ``batch.json`` beside the ranks' arrays; returns why that was impossible, or an empty text."""
    content = {
        "step": batch.step,
        "update": update,
        "version": batch.version,
        "not_finite": dict(outcome.not_finite),
        "groups": [_group(group, index, batch.ages[index]) for index, group in enumerate(batch.groups)],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1)
        (folder / BATCH_FILE).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        return f"its batch could not be written to {folder}: {error}"
    return ""


def _group(group: RolloutGroup, index: int, age: int) -> dict[str, object]:
    return {
        "group": index,
        "id": group.id,
        "prompt_id": group.prompt.id,
        "prompt": group.prompt.text,
        "label": group.prompt.label,
        "engine": group.engine,
        "oldest_version": group.oldest_version,
        "newest_version": group.newest_version,
        "age": age,
        "rewards": [r.reward if math.isfinite(r.reward) else str(r.reward) for r in group.rollouts],
        "correct": [rollout.correct for rollout in group.rollouts],
        "lengths": [rollout.length for rollout in group.rollouts],
        "truncated": [rollout.truncated for rollout in group.rollouts],
    }
