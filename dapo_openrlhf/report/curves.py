"""Draws the run's curves once it has ended or failed (standard library; matplotlib for drawing)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dapo_openrlhf.pipeline.events import Evaluated, Event, Rewound
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.report.step_rows import StepRows


class Curves(Sink):
    """Keeps every row and the held-out accuracies, to draw them at the end."""

    name = "the picture of the curves"

    def __init__(
        self,
        path: Path,
        *,
        title: str,
        earlier: Mapping[int, Row] | None = None,
        measured: Mapping[int, float] | None = None,
    ) -> None:
        """``earlier``: rows by step, from 0, that were done before the run was resumed; ``measured``: held-out accuracies
        of that time by the number of steps done."""
        self._path = path
        self._title = title
        self._rows = StepRows(earlier)
        self._evaluations = dict(measured or {})
        self._rewinds: list[int] = []

    def event(self, event: Event) -> None:
        """Keep a held-out accuracy; forget what a rewind has undone, and keep where it led to."""
        if isinstance(event, Rewound):
            self._rows.forget_from(event.to_step)
            self._evaluations = {step: value for step, value in self._evaluations.items() if step <= event.to_step}
            self._rewinds.append(event.to_step)
        if isinstance(event, Evaluated):
            self._evaluations[event.step] = event.accuracy

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Keep a row."""
        self._rows.put(step, row)

    def close(self) -> None:
        """Draw the curves."""
        from dapo_openrlhf.report.picture import draw_run

        draw_run(
            list(self._rows.all()), sorted(self._evaluations.items()), self._path, self._title, rewinds=self._rewinds
        )
