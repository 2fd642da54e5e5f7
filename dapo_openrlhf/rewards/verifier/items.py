"""Brings the items of several values into the form of the other answer: without names, as entries of a matrix."""

from __future__ import annotations

import re

from dapo_openrlhf.rewards.verifier import values
from dapo_openrlhf.rewards.verifier.kinds import Equation, Expression, Matrix, Several, Value
from dapo_openrlhf.rewards.verifier.names import is_name

_POINT = re.compile(r"[ABD-Z]\(.+,.+\)")
"""A named point; ``C(10,3)`` is a number of combinations."""


def unnamed_items(mine: Several, other: Several) -> Several:
    """The items without their names, where the other side has none; in alphabetical order of the names if they
    differ."""
    equations = [item for item in mine.items if isinstance(item, Equation) and is_name(item.left)]
    if len(equations) < len(mine.items) or any(isinstance(item, Equation) for item in other.items) or not equations:
        return mine
    names = [equation.left for equation in equations]
    if len(set(names)) == 1:
        return Several(mine.kind, tuple(values.read(equation.right) for equation in equations))
    if len(set(names)) < len(names):
        return mine
    if all(len(name) == 1 for name in names):
        equations.sort(key=lambda equation: equation.left)
    return Several("named", tuple(values.read(equation.right) for equation in equations))


def located(value: Value, other: Value) -> Value:
    """A point such as ``A(1,2)`` as a pair, where the other side does not name the point."""
    is_pair = isinstance(other, Several) and other.kind == "tuple"
    if is_pair and isinstance(value, Expression) and _POINT.fullmatch(value.text):
        return values.read(value.text[1:])
    return value


def vector(value: Value, kind: str) -> Several:
    """A matrix with one row or column as a tuple; a larger matrix as an empty one."""
    if isinstance(value, Several):
        return value
    assert isinstance(value, Matrix)
    is_line = len(value.rows) == 1 or all(len(row) == 1 for row in value.rows)
    found = [Expression(entry) for row in entries(value) for entry in row] if is_line else []
    return Several("vector" if kind == "vector" else "tuple", tuple(found))


def entries(matrix: Matrix) -> list[list[str]]:
    if not matrix.factor:
        return [list(row) for row in matrix.rows]
    factor = "-1" if matrix.factor == "-" else matrix.factor
    return [[f"({factor})({entry})" for entry in row] for row in matrix.rows]
