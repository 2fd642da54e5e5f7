"""The messages of the processes that render rows."""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_ID = "i"
"""Type code of ``array`` for token ids: 32 bits."""


@dataclass(frozen=True, slots=True)
class Good:
    """A row that is a prompt."""

    number: int
    text: bytes
    token_ids: bytes
    """Token ids as the bytes of an ``array`` of type :data:`TOKEN_ID`."""
    rest: bytes
    """Label and columns as JSON."""
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that is not a prompt."""

    number: int
    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The file cannot be read at all, for the reason in a ``ConfigError``."""

    words: str
