"""Expressions as answers write them, LaTeX or plain, read into a tree by precedence climbing (standard library only)."""

from __future__ import annotations

import functools
import re
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
    """``name`` of arithmetic or of a function, applied."""

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
MOST_TOKENS = 2000
DEEPEST = 60
"""Nesting of an expression that is read."""


class Unreadable(ValueError):
    """A text that is no expression."""


class Unfinished(Unreadable):
    """An integral, a limit or the like: it would have to be worked out first."""


_PLAIN = (
    "arcsinh arccosh arctanh arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh coth sin cos tan cot sec csc "
    "ln lg log exp sqrt gcd lcm max min floor ceil abs mod"
).split()
FUNCTIONS = frozenset(_PLAIN)
_TRIGONOMETRIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega Gamma Delta "
    "Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar aleph nabla partial angle triangle odot oplus star circ Re Im".split()
)
_MARKED = frozenset("vec hat tilde overline mathbb mathcal mathfrak mathscr widehat widetilde acute check ddot dot".split())
_UNFINISHED = frozenset("int iint iiint oint lim limsup liminf".split())
_TOKEN = re.compile(
    rf"\d+(?:\.\d+|\.(?=\\overline))?|\.\d+|\.(?=\\overline)|\\[a-zA-Z]+|\\.|{'|'.join(_PLAIN)}|[A-Za-z]|[^\s\\]", re.DOTALL
)
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_CLOSERS = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\langle": r"\rangle"}
_TIMES = frozenset(("*", r"\times", r"\cdot", r"\ast"))
_DIVIDED = frozenset(("/", r"\div"))
_ENDS = frozenset((r"\choose", r"\over", ")", "]", "}", ",", "+", "-", "=", "", "&", r"\rfloor", r"\rceil", r"\rangle", "|", "/", "*", "^", "_", "!", "%", "°", "'"))


@functools.lru_cache(maxsize=512)
def parse(text: str) -> Node:
    """The tree of an expression; remembers a group's gold answer. Raises :class:`Unreadable`."""
    return _Parser(text).whole()


def negative(node: Node) -> Node:
    """Its negative."""
    return Number(-node.value) if isinstance(node, Number) else Operation("*", (Number(Fraction(-1)), node))


class _Parser:
    """One reading of one text: a method for each level of precedence."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(_THOUSANDS.sub(lambda number: number[0].replace(",", ""), text))
        if len(self._tokens) > MOST_TOKENS:
            raise Unreadable("too long")
        self._position = self._depth = 0
        self._bars = 0
        """Absolute values that are open."""
        self._bound: list[str] = []
        """Variables of sums around what is read."""

    def whole(self) -> Node:
        node = self._over_or_choose()
        if self._next():
            raise Unreadable(f"unexpected {self._next()}")
        return node

    def _over_or_choose(self) -> Node:
        r"""A sum, or two with ``\over`` or ``\choose`` between them."""
        node = self._sum()
        if self._next() in (r"\choose", r"\over"):
            return Operation("binom" if self._take() == r"\choose" else "/", (node, self._sum()))
        return node

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

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable("nested too deeply")
        terms = [self._signed()]
        while self._next() in ("+", "-"):
            terms.append(negative(self._product()) if self._take() == "-" else self._product())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Operation("+", tuple(terms))

    def _signed(self) -> Node:
        sign = 1
        while self._next() in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        return self._product() if sign == 1 else negative(self._product())

    def _product(self) -> Node:
        node = self._factor()
        while True:
            token = self._next()
            if token in _TIMES:
                self._take()
                node = Operation("*", (node, self._signed_factor()))
            elif token in _DIVIDED:
                self._take()
                node = Operation("/", (node, self._signed_factor()))
            elif token in (r"\bmod", r"\mod", "mod", r"\pmod"):
                self._take()
                node = Operation("mod", (node, self._signed_factor()))
            elif self._begins_factor(token):
                node = self._joined(node)
            else:
                return node

    def _joined(self, left: Node) -> Node:
        r"""Two factors side by side; ``3\frac{1}{2}`` and ``3 1/2`` are mixed numbers."""
        before = self._tokens[self._position - 1]
        is_whole = before.isdigit() and isinstance(left, Number)
        if self._next()[0].isdigit() and before[-1].isdigit():
            if is_whole and self._next().isdigit() and self._next(1) == "/" and self._next(2).isdigit():
                top, _, bottom = self._take(), self._take(), self._take()
                return _mixed(left, Fraction(int(top), int(bottom) or 1), proper=int(top) < int(bottom))
            raise Unreadable("two numbers side by side")
        right = self._factor()
        if is_whole and isinstance(right, Operation) and right.name == "/" and all(isinstance(part, Number) for part in right.arguments):
            top, bottom = (part.value for part in right.arguments if isinstance(part, Number))
            if 0 < top < bottom:
                return _mixed(left, top / bottom, proper=True)
        return Operation("*", (left, right))

    def _signed_factor(self) -> Node:
        if self._next() in ("+", "-"):
            return negative(self._signed_factor()) if self._take() == "-" else self._signed_factor()
        return self._factor()

    def _begins_factor(self, token: str) -> bool:
        if token in _ENDS:
            return token == "|" and self._bars == 0
        return token[0].isalnum() or token[0] in "([{." or (token[0] == "\\" and (token[1:].isalpha() and token not in _CLOSERS.values()))

    def _factor(self) -> Node:
        node = self._primary()
        while True:
            token = self._next()
            if token == "^":
                self._take()
                node = Operation("^", (node, self._exponent()))
            elif token == "_" and isinstance(node, Operation) and node.name == "^" and isinstance(node.arguments[0], Symbol):
                node = Operation("^", (self._with_scripts(node.arguments[0].name), node.arguments[1]))
            elif token == "!":
                self._take()
                double = self._accept("!")
                node = Operation("!!" if double else "!", (node,))
            elif token == "%":
                self._take()
                node = Operation("/", (node, Number(Fraction(100))))
            elif token == "°":
                self._take()
                node = Operation("*", (node, Operation("/", (Symbol("pi"), Number(Fraction(180))))))
            else:
                return node

    def _exponent(self) -> Node:
        sign = 1
        while self._next() in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        node = self._argument(digits=True)
        if self._accept("^"):
            node = Operation("^", (node, self._exponent()))
        return node if sign == 1 else negative(node)

    def _argument(self, *, digits: bool = False) -> Node:
        """What a command, or a script, applies to: a group, or one token; of a number all ``digits``, or one."""
        token = self._next()
        if token in ("{", "("):
            return self._group()
        if token[:1].isdigit() and not digits and len(token) > 1:
            self._tokens[self._position] = token[1:]
            return Number(Fraction(token[0]))
        if token in _ENDS:
            raise Unreadable(f"{token or 'the end'} where an argument should be")
        return self._primary()

    def _group(self) -> Node:
        closer = _CLOSERS[self._take()]
        node = self._over_or_choose()
        self._expect(closer)
        return node

    def _primary(self) -> Node:
        token = self._take()
        if not token:
            raise Unreadable("it ends too early")
        if token[0].isdigit() or token[0] == ".":
            return self._number(token)
        if token in ("(", "[", "{", r"\lfloor", r"\lceil"):
            self._position -= 1
            group = self._group()
            name = {r"\lfloor": "floor", r"\lceil": "ceil"}.get(token)
            return Operation(name, (group,)) if name else group
        if token in ("|", r"\|"):
            self._bars += 1
            node = self._sum()
            self._bars -= 1
            self._expect(token)
            return Operation("abs", (node,))
        name = token[1:] if token[0] == "\\" else token
        if name in FUNCTIONS:
            return self._function(name)
        if len(token) == 1 and token.isalpha():
            return self._letter(token)
        return self._command(name) if token[0] == "\\" else self._refuse(token)

    def _refuse(self, token: str) -> Node:
        raise Unreadable(f"unexpected {token}")

    def _number(self, token: str) -> Number:
        if self._next() == r"\overline" and "." in token:
            digits = self._raw(self._take())
            if digits.isdigit():
                fixed = token.partition(".")[2]
                return Number(Fraction(f"0{token}0") + Fraction(int(digits), 10 ** len(fixed) * (10 ** len(digits) - 1)))
            raise Unreadable("a line over no digits")
        if self._next() == "_":
            raise Unreadable("a number in a base")
        if token == ".":
            raise Unreadable("a point without digits")
        return Number(Fraction(token))

    def _raw(self, after: str) -> str:
        """The text of the group, or the token, that follows."""
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

    def _letter(self, letter: str) -> Node:
        if letter in ("e", "i") and letter not in self._bound and self._next() not in ("_", "'"):
            return Symbol(letter)
        return self._with_scripts(letter if letter not in CONSTANTS else f"letter {letter}")

    def _with_scripts(self, name: str) -> Symbol:
        while self._next() in ("_", "'"):
            name += self._take()
            if name[-1] == "_":
                name += self._raw("_")
        return Symbol(name)

    def _command(self, name: str) -> Node:
        match name:
            case "pi":
                return Symbol("pi")
            case "infty":
                return Symbol("infinity")
            case "frac":
                return Operation("/", (self._argument(), self._argument()))
            case "binom":
                return Operation("binom", (self._argument(), self._argument()))
            case "sum" | "prod":
                return self._series(name)
            case "Gamma" if self._next() == "(":
                return Operation("gamma", (self._group(),))
        if name in _UNFINISHED:
            raise Unfinished(f"\\{name} is left to be worked out")
        if name in _MARKED:
            return self._with_scripts(f"\\{name} {self._raw(name)}")
        if name in _GREEK:
            return self._with_scripts("\\" + name)
        raise Unreadable(f"unknown \\{name}")

    def _function(self, name: str) -> Node:
        if name == "sqrt":
            return self._root()
        power = base = None
        while self._next() in ("^", "_"):
            if self._take() == "^":
                power = self._exponent()
            else:
                base = self._argument(digits=True)
        if name == "mod" or (name in ("gcd", "lcm", "max", "min", "floor", "ceil", "abs") and self._next() not in ("(", "{")):
            raise Unreadable(f"{name} of nothing")
        inverse = power == Number(Fraction(-1)) and (name in _TRIGONOMETRIC or name.removesuffix("h") in _TRIGONOMETRIC)
        arguments = self._arguments(name)
        if inverse:
            return Operation("arc" + name, arguments)
        name = f"arc{name[1:]}" if name in ("asin", "acos", "atan") else "log" if name == "lg" else name
        node: Node = Operation(name, arguments if base is None else (*arguments, base))
        return Operation("^", (node, power)) if power is not None else node

    def _root(self) -> Node:
        degree: Node = Number(Fraction(2))
        if self._next() == "[":
            self._take()
            degree = self._sum()
            self._expect("]")
        return Operation("root", (self._argument(digits=True), degree))

    def _arguments(self, name: str) -> tuple[Node, ...]:
        """In brackets, or what stands side by side up to the next function."""
        if self._next() in ("(", "{", "["):
            closer = _CLOSERS[self._take()]
            found = [self._sum()]
            while self._accept(","):
                found.append(self._sum())
            self._expect(closer)
            return tuple(found)
        node = self._signed_factor()
        while True:
            token = self._next()
            if token.lstrip("\\") in FUNCTIONS - {"sqrt"} or not (self._begins_factor(token) or (token == "/" and name in _TRIGONOMETRIC)):
                return (node,)
            if self._accept("/"):
                node = Operation("/", (node, self._factor()))
            else:
                node = self._joined(node)

    def _series(self, name: str) -> Node:
        self._expect("_")
        self._expect("{")
        variable = self._take()
        self._expect("=")
        low = self._sum()
        self._expect("}")
        self._expect("^")
        high = self._exponent()
        if high == Symbol("infinity") or not variable.isalpha():
            raise Unfinished("an infinite sum is left to be worked out")
        self._bound.append(variable)
        body = self._product()
        self._bound.pop()
        return Series(name, f"letter {variable}" if variable in CONSTANTS else variable, low, high, body)


def _mixed(whole: Node, part: Fraction, *, proper: bool) -> Number:
    if not proper or not isinstance(whole, Number):
        raise Unreadable("no mixed number")
    return Number(whole.value + part)


def symbols_of(node: Node) -> frozenset[str]:
    """Names of the free symbols; constants are none."""
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
    """Whether a constant, or an operation with that many arguments, is somewhere in it."""
    match node:
        case Number():
            return False
        case Symbol():
            return node.name == name
        case Operation():
            return (node.name == name and len(node.arguments) == arguments) or any(mentions(part, name, arguments) for part in node.arguments)
        case Series():
            return any(mentions(part, name, arguments) for part in (node.low, node.high, node.body))
