"""Equality of two expressions by math-verify, for what text and exact numbers leave open (only in a judge's process).

Nothing here has a time limit: the process does. math-verify's own limits, and its habit of taking every exception for
"not equal", would turn a lack of time or memory into a wrong answer.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import math_verify.grader
import sympy
from math_verify import verify

from dapo_openrlhf.judge.latex import read
from dapo_openrlhf.judge.sources import Undecided
from dapo_openrlhf.verifier import Algebra

_HOPELESS = re.compile(
    r"""
    \d\}? \s* \^ \s* \{* -?\d+ \}? \s* \^     # a tower of powers of numbers
    | \^ \s* \{? -?\d{6,}                     # an exponent of a million or so
    | \d{4,} \s* ! | [!)}] \s* !              # the factorial of a large number, or of an expression
    | \\binom \s* \{ \d{5,}                   # a large binomial
    | \\(?: int | oint | lim ) (?![a-zA-Z])    # an integral or a limit
    | \\(?: sum | prod ) .* \\infty           # an infinite sum
    """,
    re.VERBOSE | re.DOTALL,
)
_DEEPEST = 20
FAR_APART = 1e-3
"""Relative difference from which on two expressions are unequal for sure; math-verify rounds to six decimals."""
_HIGHEST_EXPANDED = 12
"""The sum of all powers of sums that are multiplied out."""
_NEARLY_ZERO = 1e-12
"""Absolute difference that may be rounding."""

_NO_NUMBER = (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError)
"""What sympy raises on the way to a value that there is not; math-verify may know better then."""
_FIRST = (
    (r"(x+1)^2+\frac{\sqrt{4}}{2}", "x^2+2x+2"),
    (r"\frac{2\sqrt{3}+\pi}{4}", r"\frac{\sqrt{3}}{2}+\frac{\pi}{4}"),
    (r"\log_{2}(3)", r"\frac{\ln 3}{\ln 2}"),
    (r"(-\infty,2)\cup[3,\infty)", r"\{1,2\}"),
    ("1,3+4i", "4i+3,1"),
)
"""Asked before all others: what is loaded late, and the ways through the grammar, take a second otherwise."""


def prepare() -> None:
    """Make this process fit for hostile answers; call once, before the first question."""
    sys.set_int_max_str_digits(0)  # its ValueError would look like an odd expression; time is limited anyway
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for answer, label in _FIRST:
        equal(Algebra(answer=answer, label=label))
    # A module's own name comes before the builtin one: what its "except Exception" lets through from now on is reported.
    vars(math_verify.grader)["Exception"] = tuple(_without_exhaustion(Exception))


def _without_exhaustion(kind: type[Exception]) -> Iterator[type[Exception]]:
    """All known kinds of exception that are no sign of too little memory or stack."""
    for below in kind.__subclasses__():
        if issubclass(RecursionError, below):  # RuntimeError, or itself: those beside and below it
            yield from _without_exhaustion(below)
        elif below is not MemoryError:
            yield below


def equal(question: Algebra) -> bool:
    """Whether math-verify finds the two equal. An answer it cannot read equals nothing. Raises :class:`Undecided`."""
    for text in (question.answer, question.label):
        if _HOPELESS.search(text) or _depth(text) > _DEEPEST:
            raise Undecided(f"too expensive to compare: {text[:60]}")
    gold = read(question.label)
    if gold is None:
        raise Undecided(f"the gold answer cannot be read: {question.label[:60]}")
    answer = read(question.answer)
    try:
        if answer is None or _are_far_apart(gold, answer):
            return False
        return _are_the_same(gold, answer) or bool(
            verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)
        )
    except (MemoryError, RuntimeError) as error:
        raise Undecided(f"{type(error).__name__} while comparing: {question.answer[:60]}") from error


def _are_the_same(one: Any, other: Any) -> bool:
    """Whether multiplying out makes them one, which is the cheap part of simplifying."""
    if (
        isinstance(one, sympy.Eq)
        and isinstance(other, sympy.Eq)
        and all(isinstance(side, sympy.Expr) for side in (*one.args, *other.args))
    ):
        first, second = one.lhs - one.rhs, other.lhs - other.rhs
        return _are_the_same(first, second) or _are_the_same(first, -second)
    if not _are_compound(one, other):
        return False
    difference = one - other
    powers = sum(abs(power.exp) for power in difference.atoms(sympy.Pow) if power.base.is_Add and power.exp.is_Integer)
    try:
        return bool(powers <= _HIGHEST_EXPANDED and sympy.expand(difference) == 0)
    except _NO_NUMBER:
        return False


def _are_far_apart(one: Any, other: Any) -> bool:
    """Whether two expressions differ by far more than rounding at a point of no significance, and so are unequal for
    sure: most wrong answers, without simplifying them."""
    if not _are_compound(one, other):
        return False
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    point = {symbol: sympy.Rational(1000 + 37 * index, 811 + 2 * index) for index, symbol in enumerate(symbols)}
    try:
        first, second = one.subs(point).evalf(15), other.subs(point).evalf(15)
        if first.is_infinite or second.is_infinite:
            return bool(first != second)
        gap, *sizes = map(_magnitude, (first - second, first, second))
        return bool(gap > FAR_APART * max(sizes) + _NEARLY_ZERO)
    except _NO_NUMBER:
        return False


def _magnitude(number: Any) -> Any:
    """Absolute value of what ``evalf`` made. Raises ``TypeError`` if that is no number."""
    return abs(number) if number.is_Float or number.is_Integer else abs(complex(number))


def _are_compound(one: Any, other: Any) -> bool:
    """Whether both are expressions of numbers and neither is a letter, which math-verify compares by name."""
    return all(
        isinstance(each, sympy.Expr) and not each.is_Symbol and not each.has(sympy.MatrixBase, sympy.MatrixExpr)
        for each in (one, other)
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest
