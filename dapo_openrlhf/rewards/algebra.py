"""Equality of two expressions or equations where text and exact numbers do not decide it (only in a reward process).

Both sides are parsed into trees and their values compared: exactly where they are rational, otherwise to tens of
digits, and to hundreds if they are close. A difference that shrinks with the precision is rounding; one that stays is
real. With free symbols the values are compared at several points: rational, negative and integer. Nothing is
simplified, so the time is bounded by the length of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import TypeAlias

import mpmath

from dapo_openrlhf.rewards.evaluate import Evaluation, Real, TooLarge, TooLong, Undefined
from dapo_openrlhf.rewards.expression import negative, parse
from dapo_openrlhf.rewards.failures import Undecided
from dapo_openrlhf.rewards.tokens import Unfinished, Unreadable
from dapo_openrlhf.rewards.tree import Node, Operation, Symbol, mentions, symbols_of
from dapo_openrlhf.rewards.verifier import Algebra

PRECISIONS = (30, 200)
"""Numbers of digits of the two evaluations."""
LOST_DIGITS = 10
"""A difference is rounding if it shrinks as the precision grows, up to this many digits."""
LEAST_POINTS = 2
"""Fewest points at which two expressions must both have a value."""
_FIRST = Algebra(answer=r"\sin^2 x+\cos^2 x+\sqrt{3+2\sqrt{2}}-\ln e", label=r"1+\sqrt{2}")
"""The first question asked, so that everything is loaded before the others."""


def prepare() -> None:
    """Load everything that a question needs; call it once, before the first question."""
    equal(_FIRST)


def equal(question: Algebra) -> bool:
    """Whether the two are equal. An answer that cannot be read equals nothing. Raises :class:`Undecided`."""
    try:
        answer = _read(question.answer)
    except Unreadable:
        return False
    try:
        gold = _read(question.label)
    except Unfinished:
        return False
    except Unreadable as error:
        raise Undecided(f"the gold answer cannot be read: {question.label[:60]}: {error}") from None
    try:
        if len(answer) != len(gold):
            return False
        return _equations(answer, gold) if len(gold) == 2 else _expressions(answer[0], gold[0])
    except (MemoryError, RecursionError, TooLarge, TooLong) as error:
        raise Undecided(f"{type(error).__name__} while comparing: {question.answer[:60]}") from error


def _read(text: str) -> tuple[Node, ...]:
    """Parse one expression, or the two sides of an equation. Raises :class:`Unreadable`."""
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "=" and depth == 0:
            return (parse(text[:position]), parse(text[position + 1 :]))
    return (parse(text),)


def _expressions(one: Node, other: Node) -> bool:
    if one == other:
        return True
    if _is_monstrous(one) or _is_monstrous(other):
        return _is_monstrous(one) and _is_monstrous(other) and _monsters(one, other)
    logs = (False, True) if mentions(one, "log", 1) or mentions(other, "log", 1) else (False,)
    return any(_same_everywhere(one, other, natural_log=natural) for natural in logs)


def _is_monstrous(node: Node) -> bool:
    """Whether a number is too large to be written in digits, such as a tower of powers."""
    if symbols_of(node):
        return False
    try:
        with mpmath.workdps(PRECISIONS[0]):
            Evaluation({}).of(node)
    except TooLarge:
        return True
    except Undefined:
        return False
    return False


def _monsters(one: Node, other: Node) -> bool:
    """Whether two such numbers are equal: powers or factorials of the same. Raises :class:`TooLarge` for others."""
    match one, other:
        case Operation("^", (base, exponent)), Operation("^", (other_base, other_exponent)):
            if _expressions(base, other_base):
                return _expressions(exponent, other_exponent)
            return _expressions(
                Operation("*", (exponent, Operation("ln", (base,)))),
                Operation("*", (other_exponent, Operation("ln", (other_base,)))),
            )
        case Operation("!", (argument,)), Operation("!", (other_argument,)):
            return _expressions(argument, other_argument)
        case _:
            raise TooLarge("both numbers are too large to be compared")


def _same_everywhere(one: Node, other: Node, *, natural_log: bool) -> bool:
    names = sorted(symbols_of(one) | symbols_of(other))
    if not names:
        return _same_value(_values(one, other, {}, natural_log=natural_log)) is True
    for real in (True, False) if not (mentions(one, "i") or mentions(other, "i")) else (False,):
        agreeing = 0
        for point in _points(names):
            same = _same_value(_values(one, other, point, real=real, natural_log=natural_log))
            if same is False:
                return False
            agreeing += same is True
        if agreeing >= LEAST_POINTS:
            return True
    return False


def _points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Yield the points at which values are compared: rational, negative, integer."""
    yield {name: Fraction(1009 + 37 * index, 811 + 22 * index) for index, name in enumerate(names)}
    yield {name: Fraction(389 + 11 * index, 1013 - 30 * (index % 20)) for index, name in enumerate(names)}
    yield {name: -Fraction(733 + 41 * index, 307 + 6 * index) for index, name in enumerate(names)}
    yield {name: Fraction(7 + 2 * index) for index, name in enumerate(names)}
    yield {name: Fraction(12 + 5 * index) for index, name in enumerate(names)}


_Pair: TypeAlias = Callable[[], tuple[Real, Real]]


def _values(
    one: Node, other: Node, point: Mapping[str, Fraction], *, real: bool = False, natural_log: bool = False
) -> _Pair:
    def both() -> tuple[Real, Real]:
        return tuple(Evaluation(point, real=real, natural_log=natural_log).of(node) for node in (one, other))

    return both


def _same_value(both: _Pair) -> bool | None:
    """Whether two values are equal; None where one is undefined. Raises :class:`TooLarge` where both are too large."""
    before: Real = None
    for fewer, digits in zip((0, *PRECISIONS), PRECISIONS, strict=False):
        with mpmath.workdps(digits):
            try:
                one, other = both()
            except Undefined:
                return None
            if isinstance(one, Fraction) and isinstance(other, Fraction):
                return one == other
            gap, size = _gap(one, other)
            if size is None:
                return None if gap is None else bool(gap)
            if before is None:
                before = max(gap, size * mpmath.mpf(10) ** -digits)
                continue
            if 2 * gap > before:
                return False if gap < 2 * before else None
            if gap * mpmath.mpf(10) ** (digits - fewer - LOST_DIGITS) <= before:
                return True
            before = gap
    return None


def _gap(one: Real, other: Real) -> tuple[Real, Real | None]:
    """The difference of two values and the magnitude of the larger one; a verdict and None for infinities."""
    first, second = (
        mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value
        for value in (one, other)
    )
    if mpmath.isnan(first) or mpmath.isnan(second):
        return None, None
    if mpmath.isinf(first) or mpmath.isinf(second):
        return first == second, None
    return abs(first - second), max(abs(first), abs(second))


def _equations(one: tuple[Node, ...], other: tuple[Node, ...]) -> bool:
    """Whether two equations are equivalent: the differences of their sides are in a constant ratio, or one equation is
    solved for a symbol, and that solves the other, in which the symbol appears to the first power."""
    first, second = (Operation("+", (sides[0], negative(sides[1]))) for sides in (one, other))
    names = sorted(symbols_of(first) | symbols_of(second))
    if symbols_of(first) != symbols_of(second) or not names:
        return False
    start, *others = _points(names)
    verdicts = [_same_value(_ratio(first, second, start, point)) for point in others]
    if (
        False not in verdicts
        and verdicts.count(True) >= LEAST_POINTS
        and _same_value(_values(first, parse("0"), start)) is not True
    ):
        return True
    return _solves(one, second, names) or _solves(other, first, names)


def _ratio(first: Node, second: Node, start: Mapping[str, Fraction], point: Mapping[str, Fraction]) -> _Pair:
    def crosswise() -> tuple[Real, Real]:
        a, b = (Evaluation(start).of(node) for node in (first, second))
        c, d = (Evaluation(point).of(node) for node in (first, second))
        return _times(a, d), _times(b, c)

    return crosswise


def _times(one: Real, other: Real) -> Real:
    if isinstance(one, Fraction) == isinstance(other, Fraction):
        return one * other
    first, second = (
        mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value
        for value in (one, other)
    )
    return first * second


def _solves(solved: tuple[Node, ...], difference: Node, names: list[str]) -> bool:
    """Whether ``y = g(x)`` makes the difference zero everywhere, which is of the first degree in ``y``."""
    for left, right in (solved, solved[::-1]):
        if isinstance(left, Symbol) and left.name in names and left.name not in symbols_of(right):
            verdicts = [_vanishes(left.name, right, difference, point) for point in _points(names)]
            if False not in verdicts and verdicts.count(True) >= LEAST_POINTS:
                return True
    return False


def _vanishes(name: str, right: Node, difference: Node, point: Mapping[str, Fraction]) -> bool | None:
    """Whether ``right`` in place of ``name`` makes ``difference`` zero at a point, and no other value does."""

    def steps() -> list[Real]:
        value = Evaluation(point).of(right)
        return [Evaluation({**point, name: _plus(value, step)}).of(difference) for step in (0, 1, 2)]

    def at_zero() -> tuple[Real, Real]:
        return steps()[0], Fraction(0)

    def second_difference() -> tuple[Real, Real]:
        zero, one, two = steps()
        return _plus(zero, two), _times(one, Fraction(2))

    zero, straight = _same_value(at_zero), _same_value(second_difference)
    if zero is None or straight is None:
        return None
    return zero and straight and _same_value(lambda: (steps()[1], Fraction(0))) is False


def _plus(one: Real, other: Real) -> Real:
    if isinstance(one, Fraction) and isinstance(other, Fraction | int):
        return one + other
    first, second = (
        mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value
        for value in (one, other)
    )
    return first + second
