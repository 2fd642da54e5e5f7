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
    """Text that is no mathematics."""

    text: str


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a base: ``1201_3``."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Several:
    """Several values. In a ``list`` or ``set`` any order does; repetitions count. ``named`` ones had names and are in
    the order of these."""

    kind: Literal["list", "set", "tuple", "vector", "named"]
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """``left = right``."""

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
    """All numbers between two."""

    low: str
    high: str
    with_low: bool
    with_high: bool


@dataclass(frozen=True, slots=True)
class Region:
    """Intervals and single numbers together, and what is called so where it is said: ``x`` in ``x > 3``."""

    pieces: tuple[Interval, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries, each multiplied by ``factor``."""

    rows: tuple[tuple[str, ...], ...]
    factor: str
    determinant: bool = False


Value: TypeAlias = "Expression | Words | Based | Several | Equation | Relation | Region | Matrix"
