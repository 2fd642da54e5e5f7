"""The kinds of answers: one expression, words, several values, an equation, bounds, a matrix, a number in a base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Expression:
    """One value, as text."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is not mathematics."""

    text: str


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base, such as ``1201_3``."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Several:
    """Several values. In a ``list`` or ``set`` the order does not matter, but repetitions do. ``named`` values had
    names and are in the order of these."""

    kind: Literal["list", "set", "tuple", "vector", "named"]
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation ``left = right``."""

    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation between two expressions: ``<``, ``<=``, ``!=`` or a command."""

    sign: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers between two bounds."""

    low: str
    high: str
    with_low: bool
    with_high: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals and single numbers, and the name of what lies in it, if given: ``x`` in ``x > 3``."""

    pieces: tuple[Interval, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries, each multiplied by ``factor``."""

    rows: tuple[tuple[str, ...], ...]
    factor: str
    determinant: bool = False


Value: TypeAlias = "Expression | Words | Based | Several | Equation | Relation | Region | Matrix"
