"""Equality of two expressions by math-verify, for what text and exact numbers leave open (only in a judge's process).

Nothing here has a time limit: the process does. math-verify's own limits, and its habit of taking every exception for
"not equal", would turn a lack of time or memory into a wrong answer.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator

import math_verify.grader
import math_verify.parser
import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import LatexExtractionConfig, parse, verify

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
"""Relative difference from which on two constants are unequal for sure; math-verify rounds to six decimals."""


def prepare() -> None:
    """Make this process fit for hostile answers; call once, before the first question."""
    sys.set_int_max_str_digits(0)  # its ValueError would look like an odd expression; time is limited anyway
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    equal(Algebra(answer="(x+1)^2+\\sqrt{4}", label="x^2+2x+3"))  # loads what is loaded late
    # A module's own name comes before the builtin one: what its "except Exception" lets through from now on is reported.
    vars(math_verify.grader)["Exception"] = tuple(_without_exhaustion(Exception))
    vars(math_verify.parser)["latex2sympy"] = _latex2sympy


def _without_exhaustion(kind: type[Exception]) -> Iterator[type[Exception]]:
    """All known kinds of exception that are no sign of too little memory or stack."""
    for below in kind.__subclasses__():
        if issubclass(RecursionError, below):  # RuntimeError, or itself: those beside and below it
            yield from _without_exhaustion(below)
        elif below is not MemoryError:
            yield below


def _latex2sympy(*arguments: object, **options: object) -> object:
    """What it cannot read raises an ``Exception`` of no particular kind, so exhaustion is sorted out here."""
    try:
        return latex2sympy(*arguments, **options)
    except (MemoryError, RecursionError) as error:
        raise Undecided(f"{type(error).__name__} while reading an answer") from error


def equal(question: Algebra) -> bool:
    """Whether math-verify finds the two equal. An answer it cannot read equals nothing. Raises :class:`Undecided`."""
    for text in (question.answer, question.label):
        if _HOPELESS.search(text) or _depth(text) > _DEEPEST:
            raise Undecided(f"too expensive to compare: {text[:60]}")
    gold, answer = _parse(question.label), _parse(question.answer)
    if not gold:
        raise Undecided(f"the gold answer cannot be read: {question.label[:60]}")
    try:
        if not answer or _are_far_apart(gold[0], answer[0]):
            return False
        return bool(verify(gold, answer, timeout_seconds=None))
    except (MemoryError, RuntimeError) as error:
        raise Undecided(f"{type(error).__name__} while comparing: {question.answer[:60]}") from error


def _are_far_apart(one: object, other: object) -> bool:
    """Whether both are constants that differ by far more than rounding: most wrong answers, without simplifying them."""
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)) or one.free_symbols or other.free_symbols:
        return False
    try:
        first, second = one.evalf(15), other.evalf(15)
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False  # no plain number: math-verify may know better
    if not (first.is_Float or first.is_Integer) or not (second.is_Float or second.is_Integer):
        return False
    return bool(abs(first - second) > FAR_APART * (1 + abs(first)))


def _parse(text: str) -> list[object]:
    # Only what is boxed: math-verify's other patterns look for a number anywhere in the text.
    return list(
        parse(
            f"\\boxed{{{text}}}",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest
