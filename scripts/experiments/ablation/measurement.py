"""What one finished trial came to, read from its run's folder."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import Evaluated, GroupJudged, RunStarted, StepDone
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.run_folder import RunFolder

Points = Sequence[tuple[float, float]]
"""(x, y), ascending in x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One finished run."""

    seed: int
    rows: Sequence[Row]
    """One per rollout step, see :mod:`dapo_openrlhf.pipeline.metrics`."""
    accuracies: Mapping[int, float]
    """Held-out accuracy, 0 to 1, by rollout steps done; 0 steps done is the base model."""
    all_right: Mapping[int, float]
    """By rollout steps done: share, 0 to 1, of the groups judged since the step before whose every answer was right,
    whether the rung drops them or not."""
    generated_tokens: int
    train_seconds: float

    @property
    def final(self) -> float:
        """Held-out accuracy at the end; NaN where it was not measured."""
        return self.accuracies[max(self.accuracies)] if self.accuracies else math.nan

    @property
    def average(self) -> float:
        """Mean held-out accuracy over the measurements after the base model's: how early it rises; NaN without any."""
        later = [accuracy for step, accuracy in self.accuracies.items() if step > 0]
        return statistics.fmean(later) if later else math.nan

    def curve(self, name: str) -> Points:
        """A metric by rollout steps done, without the steps that lack it."""
        values = ((step, row.get(name, math.nan)) for step, row in enumerate(self.rows, start=1))
        return [(float(step), value) for step, value in values if math.isfinite(value)]

    def accuracy_by_tokens(self) -> Points:
        """(response tokens generated until then, held-out accuracy)."""
        spent = [0.0]
        for row in self.rows:
            spent.append(spent[-1] + row["tokens_per_second/generated"] * row["seconds/step"])
        return [(spent[min(step, len(self.rows))], accuracy) for step, accuracy in sorted(self.accuracies.items())]


def read_trial(run: RunFolder, seed: int) -> Measurement:
    """Read a finished run's folder."""
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    rows = [{name: value for name, value in row.items() if name != "step"} for row in _json_lines(run.metrics)]
    accuracies, all_right = _read_events(run.events)
    return Measurement(
        seed=seed,
        rows=rows,
        accuracies=accuracies,
        all_right=all_right,
        generated_tokens=summary["generated_tokens"],
        train_seconds=summary["train_seconds"],
    )


def _read_events(path: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Held-out accuracies and all-right shares by rollout steps done; what a resumed run did anew counts once."""
    accuracies: dict[int, float] = {}
    all_right: dict[int, float] = {}
    judged: list[bool] = []
    for logged in read(path):
        match logged.event:
            case RunStarted():
                judged = []
            case Evaluated() as event:
                accuracies[event.step] = event.accuracy
            case GroupJudged() as event:
                judged.append(event.accuracy == 1.0)
            case StepDone() as event:
                if judged:
                    all_right[event.step + 1] = sum(judged) / len(judged)
                judged = []
    return accuracies, all_right


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
