"""What the GPU check consists of: parts that measure, and the checks that each of them comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a part found out about one thing: a line of the table."""

    name: str
    measured: str
    wanted: str = ""
    """In words; empty for a figure that is only shown."""
    passed: bool | None = None
    """None for a figure that is only shown."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement, made in a process of its own and judged in the calling one."""

    name: str
    limit: float
    """Seconds."""
    run: Callable[[Path], Mapping[str, Any]]
    """Measures in that process; is given the folder with the workload. Its figures are written as JSON."""
    judge: Callable[[Mapping[str, Any]], list[Check]]
    """Turns the figures into checks, in the calling process."""


def table(checks: Sequence[Check]) -> str:
    """The checks as text."""
    verdict = {True: "ok", False: "FAILED", None: ""}
    rows = [("check", "measured", "wanted", "")]
    rows += [(check.name, check.measured, check.wanted, verdict[check.passed]) for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )
