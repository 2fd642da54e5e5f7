"""Rows that cannot become prompts, and a report on all of those in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Kind = Literal["unreadable", "prompt", "chat", "template", "characters", "tokens", "length", "label"]
"""What is wrong with a row: not JSON or not a mapping of columns; the prompt's column; turns of a chat; refused by the
chat template; half characters; no tokens or tokens without an embedding; no room for a response; the label."""

SHOWN = 3
"""Number of rows of each kind that a report names."""


class BadRow(Exception):
    """A row cannot become a prompt; the message says why and what would be right."""

    def __init__(self, kind: Kind, words: str) -> None:
        super().__init__(words)
        self.kind: Kind = kind


@dataclass(slots=True)
class BadRows:
    """The bad rows of a file: how many there are of each kind, and the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Number of the row and what is wrong with it, for the first :data:`SHOWN` rows of each kind."""

    def add(self, number: int, kind: str, words: str) -> None:
        """Add a bad row; ``number`` is its line, or its row where the file has no lines."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.first.setdefault(kind, [])
        if len(shown) < SHOWN:
            shown.append((number, words))

    @property
    def total(self) -> int:
        """Number of bad rows of all kinds."""
        return sum(self.counts.values())

    def report(self, unit: str) -> Iterable[str]:
        """The bad rows as lines of text, the kind with the first bad row first. ``unit`` is ``line`` or ``row``."""
        for kind in sorted(self.first, key=lambda kind: self.first[kind][0]):
            yield f"  {kind}: {self.counts[kind]:,} rows" if self.counts[kind] > 1 else f"  {kind}: 1 row"
            yield from (f"    {unit} {number}: {words}" for number, words in self.first[kind])
            if (more := self.counts[kind] - len(self.first[kind])) > 0:
                yield f"    and {more:,} more"

    def as_dict(self) -> dict[str, Any]:
        """The bad rows in a form that JSON can hold."""
        return {"counts": self.counts, "first": self.first}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Restore the bad rows from what :meth:`as_dict` returned."""
        first = {kind: [(number, words) for number, words in rows] for kind, rows in values["first"].items()}
        return cls(counts=dict(values["counts"]), first=first)
