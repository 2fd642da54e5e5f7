"""The rows of a run's steps in little memory: eight bytes a number (standard library)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping

from dapo_openrlhf.pipeline.metrics import Row


class StepRows:
    """Rows by step, from 0. A number that is NaN counts as one that the row does not have."""

    def __init__(self, rows: Mapping[int, Row] | None = None) -> None:
        """``rows``: those that are there already."""
        self._columns: dict[str, array[float]] = {}
        self._steps = 0
        for step, row in (rows or {}).items():
            self.put(step, row)

    def put(self, step: int, row: Row) -> None:
        """Keep the row of a step, in place of one that it had."""
        self._steps = max(self._steps, step + 1)
        for name in {*self._columns, *row}:
            column = self._columns.setdefault(name, array("d"))
            column.extend([math.nan] * (step + 1 - len(column)))
            column[step] = row.get(name, math.nan)

    def forget_from(self, step: int) -> None:
        """Forget the rows of a step and of all later ones."""
        self._steps = min(self._steps, step)
        for column in self._columns.values():
            del column[step:]

    def all(self) -> Iterator[Row]:
        """The rows from step 0 to the last one; empty for a step without."""
        for step in range(self._steps):
            numbers = ((name, column[step]) for name, column in self._columns.items() if step < len(column))
            yield {name: value for name, value in numbers if not math.isnan(value)}

    def there(self) -> Iterator[Row]:
        """The rows of the steps that have one."""
        return filter(None, self.all())
