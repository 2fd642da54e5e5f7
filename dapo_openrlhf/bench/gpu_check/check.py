"""The parts of the GPU check, which measure, and the checks that result from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of a part about one thing, which is a line of the table."""

    name: str
    measured: str
    wanted: str = ""
    """What is wanted, in words; empty for a figure that is only shown."""
    passed: bool | None = None
    """Whether the check passed; None for a figure that is only shown."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement, made in a process of its own and judged in the calling one."""

    name: str
    limit: float
    """Time limit in seconds."""
    run: Callable[[Path], Mapping[str, Any]]
    """Measures, in that process, with the workload in a folder. The figures are written as JSON."""
    judge: Callable[[Mapping[str, Any]], list[Check]]
    """Turns the figures into checks, in the calling process."""


def table(checks: Sequence[Check]) -> str:
    """The checks as a table of plain text."""
    verdict = {True: "ok", False: "FAILED", None: ""}
    rows = [("check", "measured", "wanted", "")]
    rows += [(check.name, check.measured, check.wanted, verdict[check.passed]) for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )
