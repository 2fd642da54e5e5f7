"""The table of findings, in words and as JSON (standard library)."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

from dapo_openrlhf.check.registry import Row

NAME, LEVEL, WIDTH = 13, 4, 118
NARROWEST = 50
"""Columns below which lines are folded no further."""


def width_here() -> int:
    """Columns of the table on this terminal; those of a wide one where the output is none."""
    return min(WIDTH, max(NARROWEST, shutil.get_terminal_size((WIDTH, 0)).columns))


def lines(row: Row, width: int = WIDTH) -> Iterator[str]:
    """The lines of one check: its name, and for each finding the level, the words and the remedy."""
    name = row.name
    for finding in row.findings:
        level = finding.level.upper() if finding.level == "fail" else finding.level
        text = finding.words + (f" -> {finding.remedy}" if finding.remedy else "")
        indent = " " * (NAME + LEVEL + 4)
        first = True
        for line in text.splitlines():
            head = f"{name:<{NAME}}  {level:<{LEVEL}}  " if first else indent
            yield from textwrap.wrap(
                line,
                width,
                initial_indent=head,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            first = False
        name = ""


def closing(rows: Iterable[Row]) -> str:
    """One line: how many checks passed, warn and fail."""
    worst = Counter(level_of(row) for row in rows)
    return f"{sum(worst.values())} checks: {worst['pass']} pass, {worst['warn']} warn, {worst['fail']} fail"


def level_of(row: Row) -> str:
    """The worst level of a check's findings."""
    levels = {finding.level for finding in row.findings}
    return next((level for level in ("fail", "warn") if level in levels), "pass")


def as_dict(rows: Iterable[Row]) -> Mapping[str, object]:
    """The table for programs: for each check its level and its findings."""
    checks = {row.name: {"level": level_of(row), "findings": [asdict(f) for f in row.findings]} for row in rows}
    return {"passed": all(check["level"] != "fail" for check in checks.values()), "checks": checks}
