"""The tokens of an expression, and a cursor over them (standard library only)."""

from __future__ import annotations

import re

MOST_TOKENS = 2000
DEEPEST = 60
"""Deepest nesting of an expression that is parsed."""


class Unreadable(ValueError):
    """A text is not an expression."""


class Unfinished(Unreadable):
    """An expression contains an integral, a limit or the like, which would have to be worked out first."""


_PLAIN = (
    "arcsinh arccosh arctanh arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh coth sin cos tan cot sec csc "
    "ln lg log exp cis sqrt gcd lcm max min floor ceil abs mod"
)
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega Gamma Delta "
    "Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar aleph nabla partial angle triangle odot oplus star circ Re Im"
)
_MARKS = "vec hat tilde overline mathbb mathcal mathfrak mathscr widehat widetilde acute check ddot dot"
_UNFINISHED = "int iint iiint oint lim limsup liminf"
_ENDS = r") ] } , + - = & \rfloor \rceil \rangle \choose \over | / * ^ _ ! % ° '"
FUNCTIONS = frozenset(_PLAIN.split())
TRIGONOMETRIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
LETTERS = frozenset(_GREEK.split())
"""Commands that are symbols."""
MARKS = frozenset(_MARKS.split())
"""Commands that make a symbol of their argument."""
UNFINISHED = frozenset(_UNFINISHED.split())
CLOSERS = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\langle": r"\rangle"}
TIMES = frozenset(("*", r"\times", r"\cdot", r"\ast"))
DIVIDED = frozenset(("/", r"\div"))
ENDS = frozenset((*_ENDS.split(), ""))
"""Tokens after which no factor begins."""
_TOKEN = re.compile(
    rf"\d+(?:\.\d+|\.(?=\\overline))?|\.\d+|\.(?=\\overline)|\\[a-zA-Z]+|\\.|{_PLAIN.replace(' ', '|')}|[A-Za-z]|[^\s\\]",
    re.DOTALL,
)
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


class Cursor:
    """A position in the tokens of a text, and what has been opened up to there."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(_THOUSANDS.sub(lambda number: number[0].replace(",", ""), text))
        if len(self._tokens) > MOST_TOKENS:
            raise Unreadable("too long")
        self._position = self._depth = 0
        self._bars = 0
        """Number of absolute values that are open."""
        self._bound: list[str] = []
        """Variables of the sums around the current position."""

    def _next(self, ahead: int = 0) -> str:
        place = self._position + ahead
        return self._tokens[place] if place < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._next()
        self._position += 1
        return token

    def _accept(self, token: str) -> bool:
        if self._next() == token:
            self._position += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise Unreadable(f"{self._next() or 'the end'} where {token} should be")

    def _raw(self, after: str) -> str:
        """The text of the group or token that follows."""
        if not self._accept("{"):
            return self._take()
        depth, found = 1, []
        while depth:
            token = self._take()
            if not token:
                raise Unreadable(f"{after} without an end")
            depth += (token == "{") - (token == "}")
            found.append(token)
        return "".join(found[:-1])
