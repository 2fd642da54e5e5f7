"""Draws the run's curves once it has ended or failed (standard library; matplotlib for drawing)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dapo_openrlhf.pipeline.events import Evaluated, Event, Rewound
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.recorder import Sink


class Curves(Sink):
    """Keeps every row and the held-out accuracies, to draw them at the end."""

    name = "the picture of the curves"

    def __init__(self, path: Path, *, title: str, earlier: Sequence[Row] = ()) -> None:
        """``earlier``: rows of the steps that were done before the run was resumed."""
        self._path = path
        self._title = title
        self._rows = list(earlier)
        self._evaluations = [
            (step, row["eval/accuracy"]) for step, row in enumerate(self._rows) if "eval/accuracy" in row
        ]
        self._rewinds: list[int] = []

    def event(self, event: Event) -> None:
        """Keep a held-out accuracy; forget what a rewind has undone, and keep where it led to."""
        if isinstance(event, Rewound):
            del self._rows[event.to_step :]
            self._evaluations = [(step, value) for step, value in self._evaluations if step <= event.to_step]
            self._rewinds.append(event.to_step)
        if isinstance(event, Evaluated):
            self._evaluations.append((event.step, event.accuracy))

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Keep a row."""
        self._rows.append(row)

    def close(self) -> None:
        """Draw the curves."""
        from dapo_openrlhf.report.picture import draw_run

        draw_run(self._rows, self._evaluations, self._path, self._title, rewinds=self._rewinds)
