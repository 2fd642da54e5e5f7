"""Values of expressions: exact rationals where possible, otherwise as many digits as asked for (mpmath).

Values that could take long raise :class:`TooLarge`; expressions without any value raise :class:`Undefined`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath
from mpmath import mp

from dapo_openrlhf.rewards.tree import Node, Number, Operation, Series, Symbol

MOST_BITS = 1_000_000
"""Approximate limit on the bits of an exact integer; 300,000 decimal digits."""
LARGEST_FACTORIAL = 20_000
LARGEST_EXPONENT = 4000
"""Most bits of the exponent of a rounded value, so that its logarithm still fits into the precision."""
LONGEST_SERIES = 20_000
MOST_EXACT_TERMS = 300
MOST_WORK = 300_000
"""Most operations of one evaluation."""


class Undefined(ArithmeticError):
    """There is no value: a division by zero, a logarithm of zero, a root that is not real."""


class TooLarge(ArithmeticError):
    """The value is too large to be written in as many digits as asked for."""


class TooLong(ArithmeticError):
    """The value takes too long."""


Real: TypeAlias = Any
"""A ``Fraction``, or mpmath's ``mpf`` or ``mpc``."""


@dataclass(slots=True)
class Evaluation:
    """One evaluation in the precision that mpmath has at the time."""

    values: Mapping[str, Fraction]
    """Values of the free symbols."""
    real: bool = False
    """Whether a value that is not real counts as undefined."""
    natural_log: bool = False
    """Whether ``log`` without a base has base e; otherwise base 10."""
    work: int = field(default=0, init=False)

    def of(self, node: Node) -> Real:
        """The value of an expression. Raises :class:`Undefined` or :class:`TooLarge`."""
        self.work += 1
        if self.work > MOST_WORK:
            raise TooLong("too many operations")
        match node:
            case Number(value):
                return value
            case Symbol(name):
                return self._symbol(name)
            case Series():
                return self._series(node)
            case Operation(name, arguments):
                value = self._operation(name, [self.of(argument) for argument in arguments])
        if self.real and isinstance(value, mpmath.mpc):
            if abs(value.imag) > mpmath.mpf(10) ** (-mp.dps // 2) * abs(value):
                raise Undefined("not real")
            return value.real
        return value

    def _symbol(self, name: str) -> Real:
        match name:
            case "pi":
                return +mp.pi
            case "e":
                return +mp.e
            case "i":
                return mpmath.mpc(0, 1)
            case "infinity":
                return mpmath.inf
            case _:
                return self.values[name]

    def _series(self, node: Series) -> Real:
        low, high = _integer(self.of(node.low)), _integer(self.of(node.high))
        if high - low > LONGEST_SERIES:
            raise TooLong("a long series")
        total: Real = Fraction(0 if node.name == "sum" else 1)
        kept = self.values
        try:
            for index in range(low, high + 1):
                self.values = {**kept, node.variable: Fraction(index)}
                value = self.of(node.body)
                if index - low == MOST_EXACT_TERMS and isinstance(total, Fraction) and total.denominator != 1:
                    total = _rounded(total)
                total = _add(total, value) if node.name == "sum" else _multiply(total, value)
        finally:
            self.values = kept
        return total

    def _operation(self, name: str, arguments: list[Real]) -> Real:
        match name:
            case "+":
                total = arguments[0]
                for argument in arguments[1:]:
                    total = _add(total, argument)
                return total
            case "*":
                return _multiply(*arguments)
            case "/":
                return _divide(*arguments)
            case "^":
                return _power(*arguments)
            case "root":
                return _root(*arguments)
            case "log":
                base = arguments[1] if len(arguments) > 1 else +mp.e if self.natural_log else Fraction(10)
                return _divide(_log(arguments[0]), _log(base))
        function = _FUNCTIONS.get(name)
        if function is None:
            raise Undefined(f"{name} is unknown")
        try:
            return function(*arguments)
        except (ValueError, ZeroDivisionError, TypeError, OverflowError) as error:
            raise Undefined(str(error)) from error


def _rounded(value: Real) -> Real:
    """A rational as a number of mpmath."""
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return value


def _checked(value: Real) -> Real:
    if (
        isinstance(value, Fraction)
        and max(value.numerator.bit_length(), value.denominator.bit_length()) > 2 * MOST_BITS
    ):
        raise TooLarge("too many digits")
    return value


def _add(one: Real, other: Real) -> Real:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return _checked(one + other)
    return _rounded(one) + _rounded(other)


def _multiply(one: Real, other: Real) -> Real:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return _checked(one * other)
    if one == 0 or other == 0:
        return Fraction(0) if not (mpmath.isinf(_rounded(one)) or mpmath.isinf(_rounded(other))) else mpmath.nan
    return _rounded(one) * _rounded(other)


def _divide(one: Real, other: Real) -> Real:
    if other == 0:
        raise Undefined("a division by zero")
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return _checked(one / other)
    return _rounded(one) / _rounded(other)


def _power(base: Real, exponent: Real) -> Real:
    if base == 0:
        if isinstance(exponent, Fraction) and exponent > 0:
            return Fraction(0)
        if exponent == 0:
            return Fraction(1)
        raise Undefined("a power of zero")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if abs(base) == 1 and exponent.denominator == 1:
            return base if exponent % 2 else Fraction(1)
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator == 1:
            if size * abs(exponent) > MOST_BITS:
                raise TooLarge("a power of too many digits")  # rounded, it would equal its neighbours
            return base**exponent.numerator
        if exponent.denominator == 2 and base > 0 and size * abs(exponent) <= MOST_BITS:
            return _power(_root(base, Fraction(2)), Fraction(exponent.numerator))
    base, exponent = _rounded(base), _rounded(exponent)
    if mpmath.isinf(base) or mpmath.isinf(exponent):
        return base**exponent
    if mpmath.mag(exponent) + mpmath.mag(mpmath.log(base) or 1) > LARGEST_EXPONENT:
        raise TooLarge("a tower of powers")
    if isinstance(exponent, mpmath.mpf) and exponent == mpmath.floor(exponent) and mpmath.mag(exponent) < 64:
        return base ** int(exponent)
    return base**exponent


def _root(value: Real, degree: Real) -> Real:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= 1000:
        return _power(value, _divide(Fraction(1), degree))
    n = degree.numerator
    if isinstance(value, Fraction):
        if value < 0 and n % 2:
            return _multiply(Fraction(-1), _root(-value, degree))
        if value >= 0 and max(value.numerator, value.denominator) < 10**60:
            top, bottom = _integer_root(value.numerator, n), _integer_root(value.denominator, n)
            if top is not None and bottom is not None:
                return Fraction(top, bottom)
    value = _rounded(value)
    if isinstance(value, mpmath.mpf) and value < 0 and n % 2:
        return -mpmath.root(-value, n)
    return mpmath.sqrt(value) if n == 2 else mpmath.root(value, n)


def _integer_root(value: int, n: int) -> int | None:
    found = math.isqrt(value) if n == 2 else round(value ** (1 / n))
    return found if found**n == value else None


def _log(value: Real) -> Real:
    if value == 0:
        raise Undefined("a logarithm of zero")
    if value == 1:
        return Fraction(0)
    if isinstance(value, Fraction) and value.denominator != 1:
        return mpmath.log(value.numerator) - mpmath.log(value.denominator) if value > 0 else mpmath.log(_rounded(value))
    return mpmath.log(_rounded(value))


def _integer(value: Real) -> int:
    """The value as an integer, if it differs from one by rounding only. Raises :class:`Undefined` otherwise."""
    if isinstance(value, Fraction):
        if value.denominator != 1:
            raise Undefined("no integer")
        return value.numerator
    if not isinstance(value, mpmath.mpf) or not mpmath.isfinite(value) or mpmath.mag(value) > 100:
        raise Undefined("no integer")
    nearest = int(mpmath.nint(value))
    if abs(value - nearest) > mpmath.mpf(10) ** (-mp.dps // 2):
        raise Undefined("no integer")
    return nearest


def _floor(value: Real) -> Fraction:
    if isinstance(value, Fraction):
        return Fraction(math.floor(value))
    try:
        return Fraction(_integer(value))
    except Undefined:
        if isinstance(value, mpmath.mpf) and mpmath.mag(value) < mp.prec:
            return Fraction(int(mpmath.floor(value)))
        raise


def _factorial(value: Real) -> Real:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined("a factorial of a negative number")
        if value > LARGEST_FACTORIAL:
            raise TooLarge("a factorial of too many digits")
        return Fraction(math.factorial(value.numerator))
    return _gamma(_add(value, Fraction(1)))


def _gamma(value: Real) -> Real:
    value = _rounded(value)
    if mpmath.mag(value) > 2000:
        raise TooLarge("a factorial of a very large number")
    return mpmath.gamma(value)


def _double_factorial(value: Real) -> Real:
    number = _integer(value)
    if not 0 <= number <= LARGEST_FACTORIAL:
        raise TooLarge("a double factorial of too many digits")
    return Fraction(math.prod(range(number, 0, -2)))


def _binomial(n: Real, k: Real) -> Real:
    if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1 and n >= 0:
        if n > LARGEST_FACTORIAL and min(k, n - k) > LARGEST_FACTORIAL // 20:
            raise TooLarge("a binomial of too many digits")
        return Fraction(math.comb(n.numerator, k.numerator)) if k >= 0 else Fraction(0)
    if max(mpmath.mag(_rounded(n) or 1), mpmath.mag(_rounded(k) or 1)) > 200:
        raise TooLarge("a binomial of very large numbers")
    return mpmath.binomial(_rounded(n), _rounded(k))


def _modulus(value: Real, by: Real) -> Real:
    divisor = _integer(by)
    if divisor == 0:
        raise Undefined("a remainder by zero")
    return Fraction(_integer(value) % divisor)


def _real(function: Callable[[Real], Real]) -> Callable[[Real], Real]:
    """A function of mpmath that refuses arguments too large for it."""

    def apply(value: Real) -> Real:
        if value == 0 and function in (mpmath.sin, mpmath.tan, mpmath.sinh, mpmath.tanh, mpmath.asin, mpmath.atan):
            return Fraction(0)
        argument = _rounded(value)
        if mpmath.isfinite(argument) and argument != 0 and mpmath.mag(argument) > LARGEST_EXPONENT:
            raise TooLarge("a function of a very large number")
        return function(argument)

    return apply


def _exp(value: Real) -> Real:
    return _power(+mp.e, value)


_FUNCTIONS: dict[str, Callable[..., Real]] = {
    "ln": _log,
    "exp": _exp,
    "cis": lambda value: _exp(_multiply(mpmath.mpc(0, 1), value)),
    "abs": abs,
    "floor": _floor,
    "ceil": lambda value: -_floor(_multiply(Fraction(-1), value)),
    "!": _factorial,
    "!!": _double_factorial,
    "gamma": _gamma,
    "binom": _binomial,
    "mod": _modulus,
    "gcd": lambda *values: Fraction(math.gcd(*map(_integer, values))),
    "lcm": lambda *values: Fraction(math.lcm(*map(_integer, values))),
    "max": lambda *values: max(values, key=_rounded),
    "min": lambda *values: min(values, key=_rounded),
    **{
        name: _real(vars(mpmath)[name])
        for name in ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "sech", "csch"]
    },
    **{
        f"arc{name}": _real(vars(mpmath)[f"a{name}"])
        for name in ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"]
    },
}
