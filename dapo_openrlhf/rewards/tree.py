"""Expressions as trees (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """A letter with its scripts and primes, or a constant: ``pi``, ``e``, ``i``, ``infinity``."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """The application of an arithmetic operation or a function ``name``."""

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """A ``sum`` or ``prod`` of ``body`` over the integers from ``low`` to ``high``."""

    name: str
    variable: str
    low: Node
    high: Node
    body: Node


Node: TypeAlias = "Number | Symbol | Operation | Series"

CONSTANTS = frozenset(("pi", "e", "i", "infinity"))


def symbols_of(node: Node) -> frozenset[str]:
    """Names of the free symbols, without constants."""
    match node:
        case Number():
            return frozenset()
        case Symbol(name):
            return frozenset() if name in CONSTANTS else frozenset((name,))
        case Operation(_, arguments):
            return frozenset().union(*map(symbols_of, arguments))
        case Series(_, variable, low, high, body):
            return (symbols_of(body) - {variable}) | symbols_of(low) | symbols_of(high)


def mentions(node: Node, name: str, arguments: int = 0) -> bool:
    """Whether a tree contains the named constant, or the named operation with that many arguments."""
    match node:
        case Number():
            return False
        case Symbol():
            return node.name == name
        case Operation():
            return (node.name == name and len(node.arguments) == arguments) or any(
                mentions(part, name, arguments) for part in node.arguments
            )
        case Series():
            return any(mentions(part, name, arguments) for part in (node.low, node.high, node.body))
