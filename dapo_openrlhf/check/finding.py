"""The result of one check (standard library)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found."""

    level: Level
    """``fail``: the run cannot start, or cannot finish. ``warn``: it can, and something may not be as intended."""
    words: str
    remedy: str = ""
    """What to do about it; empty where the words say it, or nothing is to be done."""


def passed(words: str) -> Finding:
    """A finding that nothing is wrong."""
    return Finding("pass", words)


def warned(words: str, remedy: str = "") -> Finding:
    """A finding of something that may not be as intended."""
    return Finding("warn", words, remedy)


def failed(words: str, remedy: str = "") -> Finding:
    """A finding that keeps the run from starting or finishing."""
    return Finding("fail", words, remedy)
