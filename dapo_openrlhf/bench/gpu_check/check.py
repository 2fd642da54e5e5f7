"""The parts of the GPU check, which measure, and the checks that result from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Found: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The figures of all parts that have run, by the name of the part."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of a part about one thing, which is a line of the table."""

    name: str
    measured: str
    expected: str = ""
    """What a healthy installation reaches, in words; empty for a figure that is only shown."""
    passed: bool | None = None
    """Whether the check passed; None for a figure that is only shown."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement, made in a process of its own and assessed in the calling one."""

    name: str
    limit: float
    """Time limit in seconds."""
    run: Callable[[Path], Mapping[str, Any]]
    """Measures, in that process, with the workload in a folder. The figures are written as JSON."""
    assess: Callable[[Found], list[Check]]
    """Turns the part's figures into checks, in the calling process; it may look at those of earlier parts."""
    extra: bool = False
    """Whether the part may be left out when no time is left for it."""


def table(checks: Sequence[Check]) -> str:
    """The checks as a table of plain text."""
    verdict = {True: "ok", False: "FAILED", None: ""}
    rows = [("check", "measured", "expected", "")]
    rows += [(check.name, check.measured, check.expected, verdict[check.passed]) for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )
