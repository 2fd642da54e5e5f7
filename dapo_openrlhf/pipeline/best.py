"""Finds the best of a run's checkpoints by what an evaluation measured of it (standard library).

An evaluation's numbers lie in a file in the checkpoint. It may arrive after the checkpoint is complete, so the
checkpoint's manifest does not list it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dapo_openrlhf.whole_file import write_whole

EVALUATION_FILE = "evaluation.json"
"""Name of the file in a checkpoint with the numbers of its evaluation, by their names."""

NONE = "none"
"""Value of ``ckpt.best_metric_key`` with which no checkpoint is the best."""

ACCURACY = "avg@"
"""Beginning of the accuracy's name; n, the number of responses to each problem, follows."""


def write_evaluation(checkpoint: Path, estimates: Mapping[str, float]) -> None:
    """Put the numbers of an evaluation into a complete checkpoint."""
    write_whole(checkpoint / EVALUATION_FILE, json.dumps(dict(estimates)) + "\n")


def evaluation_of(checkpoint: Path, metric: str) -> tuple[str, float] | None:
    """Name and value of a metric as measured of a checkpoint; an empty ``metric`` stands for the accuracy.

    None if the checkpoint was not evaluated, or its evaluation is damaged or lacks that metric.
    """
    try:
        estimates = json.loads((checkpoint / EVALUATION_FILE).read_text(encoding="utf-8"))
        found = [(name, value) for name, value in estimates.items() if _is_meant(name, metric)]
        return next(((name, float(value)) for name, value in found if math.isfinite(value)), None)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def best_of(checkpoints: Sequence[Path], metric: str) -> Path | None:
    """The checkpoint of which the metric is highest, the last one of several; None if none was evaluated."""
    measured = [(found[1], path) for path in checkpoints if (found := evaluation_of(path, metric)) is not None]
    return max(measured)[1] if measured else None


def _is_meant(name: str, metric: str) -> bool:
    return name == metric if metric else name.startswith(ACCURACY)
