"""What the processes that render rows send."""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_ID = "i"
"""Of ``array``: 32 bits."""


@dataclass(frozen=True, slots=True)
class Good:
    """A row that is a prompt."""

    number: int
    text: bytes
    token_ids: bytes
    """As ``array`` of :data:`TOKEN_ID` writes them."""
    rest: bytes
    """Label and columns as JSON."""
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that is none."""

    number: int
    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing can be read, for a reason that a ``ConfigError`` gives."""

    words: str
