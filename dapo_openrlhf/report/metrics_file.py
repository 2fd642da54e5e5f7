"""Writes the run's numbers as one JSON line per rollout step (standard library only)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dapo_openrlhf.pipeline.events import Event, Rewound
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.whole_file import write_whole

LARGEST = 1e300
"""What is larger is no measurement."""


class MetricsFile(Sink):
    """Appends each step's row to a file as soon as it comes."""

    name = "the file of metrics"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def event(self, event: Event) -> None:
        """Remove the rows of steps that a rewind has undone."""
        if isinstance(event, Rewound):
            self._file.close()
            earlier_rows(self._path, event.to_step)
            self._file = self._path.open("a", encoding="utf-8")

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Write and flush the row."""
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; nothing may be written afterwards."""
        self._file.close()


def earlier_rows(path: Path, first_step: int) -> list[Row]:
    """Return the rows of the steps before ``first_step``; those of steps to be repeated are removed from the file.

    Lines that are no rows, as a full disk leaves them, are removed too.
    """
    if not path.is_file():
        return []
    lines = [_row(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    kept = [line for line in lines if line is not None and line["step"] < first_step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    return [{name: value for name, value in line.items() if name != "step"} for line in kept]


def read_rows(path: Path, unread: Callable[[int], object] = lambda number: None) -> dict[int, Row]:
    """The rows of a run by step, from 0, without what is no finite number; of two rows of a step the later.

    The file stays as it is. ``unread`` is told the number, from 1, of each line that is no row.
    """
    if not path.is_file():
        return {}
    lines = [_row(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    for number, line in enumerate(lines, start=1):
        if line is None:
            unread(number)
    rows = {int(line["step"]): line for line in lines if line is not None and line["step"] >= 0}
    return {
        step: {name: float(value) for name, value in rows[step].items() if name != "step" and _is_finite(value)}
        for step in sorted(rows)
    }


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST  # type: ignore[arg-type]  # it is one of the two
