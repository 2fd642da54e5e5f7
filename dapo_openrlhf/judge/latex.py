"""LaTeX as sympy's expressions: math-verify's grammar and reading of it, several times as fast.

ANTLR predicts with one of two strategies. SLL finds the same as LL, or an error, and remembers what it learns; LL, the
default, works everything out anew. So SLL goes first, with help at the one decision of this grammar that it gets wrong.
"""

from __future__ import annotations

import functools
from typing import Any

import sympy
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.antlr_parser import PSParser
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    _Latex2Sympy,
    normalize_latex,
)
from math_verify.grader import should_treat_as_complex
from math_verify.parser import get_last_eq

from dapo_openrlhf.judge.sources import Undecided

_NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, units=False, boxed="none")
"""Units are the verifier's business: math-verify takes the ``t`` of ``3t`` for tons."""
_CONVERSION = ConversionConfig(lowercase_symbols=False)
"""``R`` is not ``r``."""


@functools.lru_cache(maxsize=256)
def read(text: str) -> Any:
    """An expression, relation, set, tuple or matrix of sympy's; None for what is no mathematics.

    Remembers a group's gold answer. Raises :class:`Undecided` where memory or stack do not suffice.
    """
    normalized = normalize_latex(text, _NORMALIZATION)
    for candidate in dict.fromkeys((normalized, get_last_eq(normalized), _both_signs(normalized))):
        is_real = not should_treat_as_complex(candidate)
        for fast in (True, False):
            try:
                return _with_imaginary_unit(_Reader(is_real=is_real, fast=fast).parse(candidate))
            except (MemoryError, RecursionError) as error:
                raise Undecided(f"{type(error).__name__} while reading an answer") from error
            except Exception:  # of no particular kind, whatever it could not read
                continue
    return None


def _both_signs(text: str) -> str:
    r"""Two answers where there is a ``\pm``, which the grammar knows only outside of all brackets."""
    return ",".join(text.replace(r"\pm", sign) for sign in "+-") if r"\pm" in text else text


def _with_imaginary_unit(found: Any) -> Any:
    """A lone ``i`` is the imaginary unit, unless a sum counts with it."""
    return found.xreplace({symbol: sympy.I for symbol in found.free_symbols if symbol.name == "i"})


class _Reader(_Latex2Sympy):  # type: ignore[misc]
    """One reading of one text."""

    def __init__(self, *, is_real: bool, fast: bool) -> None:
        super().__init__(is_real=is_real, config=_CONVERSION)
        self._fast = fast

    def create_parser(self, latex_str: str) -> Any:
        """The generated parser of a text."""
        parser = super().create_parser(latex_str)
        if self._fast:
            parser._interp = _FastPrediction(parser, parser.atn, parser.decisionsToDFA, parser.sharedContextCache)
        return parser

    def parse_number(self, text: str) -> Any:
        """A number's value; sympy would have Python evaluate the digits."""
        digits = text.replace(",", "")
        return sympy.Integer(int(digits)) if digits.isdecimal() else super().parse_number(text)


_SCRIPTS = next(
    number
    for number, state in enumerate(PSParser.atn.decisionToState)
    if state.ruleIndex == PSParser.RULE_atom_expr and len(state.transitions) == 5
)
"""The decision what follows a letter: ``^ _``, ``_ ^``, ``_`` alone, ``^`` alone, or nothing (alternatives 1 to 5)."""


class _FastPrediction(ParserATNSimulator):  # type: ignore[misc]
    """SLL, told that a ``^`` is no ``^ _`` in a text without ``_``, and the other way round."""

    def __init__(self, parser: Any, *arguments: Any) -> None:
        super().__init__(parser, *arguments)
        self.predictionMode = PredictionMode.SLL
        self._has_lower = "_" in parser.getInputStream().tokenSource.inputStream.strdata
        self._has_upper = "^" in parser.getInputStream().tokenSource.inputStream.strdata

    def adaptivePredict(self, input: Any, decision: int, outerContext: Any) -> int:
        """The alternative to take."""
        if decision == _SCRIPTS and self._has_lower != self._has_upper:
            if input.LA(1) == PSParser.CARET:
                return 4
            if input.LA(1) == PSParser.UNDERSCORE:
                return 3
        return super().adaptivePredict(input, decision, outerContext)  # type: ignore[no-any-return]
