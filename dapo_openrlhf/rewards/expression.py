"""Parses expressions in LaTeX or plain text into trees by precedence climbing (standard library only)."""

from __future__ import annotations

import functools
from fractions import Fraction

from dapo_openrlhf.rewards.tokens import (
    CLOSERS,
    DEEPEST,
    DIVIDED,
    ENDS,
    FUNCTIONS,
    LETTERS,
    MARKS,
    TIMES,
    TRIGONOMETRIC,
    UNFINISHED,
    Cursor,
    Unfinished,
    Unreadable,
)
from dapo_openrlhf.rewards.tree import CONSTANTS, Node, Number, Operation, Series, Symbol


@functools.lru_cache(maxsize=512)
def parse(text: str) -> Node:
    """The tree of an expression; cached, so that a group's gold answer is parsed once. Raises :class:`Unreadable`."""
    return _Parser(text).whole()


def negative(node: Node) -> Node:
    """The negative of a node."""
    return Number(-node.value) if isinstance(node, Number) else Operation("*", (Number(Fraction(-1)), node))


class _Parser(Cursor):
    """Parses one text, with a method for each level of precedence."""

    def whole(self) -> Node:
        node = self._over_or_choose()
        if self._next():
            raise Unreadable(f"unexpected {self._next()}")
        return node

    def _over_or_choose(self) -> Node:
        r"""Parse a sum, or two sums with ``\over`` or ``\choose`` between them."""
        node = self._sum()
        if self._next() in (r"\choose", r"\over"):
            return Operation("binom" if self._take() == r"\choose" else "/", (node, self._sum()))
        return node

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
            if token in TIMES:
                self._take()
                node = Operation("*", (node, self._signed_factor()))
            elif token in DIVIDED:
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
        if (
            is_whole
            and isinstance(right, Operation)
            and right.name == "/"
            and all(isinstance(part, Number) for part in right.arguments)
        ):
            over, under = (part.value for part in right.arguments if isinstance(part, Number))
            if 0 < over < under:
                return _mixed(left, over / under, proper=True)
        return Operation("*", (left, right))

    def _signed_factor(self) -> Node:
        if self._next() in ("+", "-"):
            return negative(self._signed_factor()) if self._take() == "-" else self._signed_factor()
        return self._factor()

    def _begins_factor(self, token: str) -> bool:
        if token in ENDS:
            return token == "|" and self._bars == 0
        return (
            token[0].isalnum()
            or token[0] in "([{."
            or (token[0] == "\\" and (token[1:].isalpha() and token not in CLOSERS.values()))
        )

    def _factor(self) -> Node:
        node = self._primary()
        while True:
            token = self._next()
            if token == "^":
                self._take()
                node = Operation("^", (node, self._exponent()))
            elif (
                token == "_"
                and isinstance(node, Operation)
                and node.name == "^"
                and isinstance(node.arguments[0], Symbol)
            ):
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
        """Parse what a command or a script applies to: a group, or one token; of a number all ``digits``, or one."""
        token = self._next()
        if token in ("{", "("):
            return self._group()
        if token[:1].isdigit() and not digits and len(token) > 1:
            self._tokens[self._position] = token[1:]
            return Number(Fraction(token[0]))
        if token in ENDS:
            raise Unreadable(f"{token or 'the end'} where an argument should be")
        return self._primary()

    def _group(self) -> Node:
        closer = CLOSERS[self._take()]
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
                return Number(
                    Fraction(f"0{token}0") + Fraction(int(digits), 10 ** len(fixed) * (10 ** len(digits) - 1))
                )
            raise Unreadable("a line over no digits")
        if self._next() == "_":
            raise Unreadable("a number in a base")
        if token == ".":
            raise Unreadable("a point without digits")
        return Number(Fraction(token))

    def _letter(self, letter: str) -> Node:
        if letter in ("e", "i") and letter not in self._bound and self._next() not in ("_", "'"):
            return Symbol(letter)
        if letter == "C" and self._next() == "(" and self._next(1).isdigit() and self._next(2) == ",":
            return Operation("binom", self._arguments("C"))  # C(10,3)
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
        if name in UNFINISHED:
            raise Unfinished(f"\\{name} is left to be worked out")
        if name in MARKS:
            return self._with_scripts(f"\\{name} {self._raw(name)}")
        if name in LETTERS:
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
                base = self._base()
        if name == "mod" or (
            name in ("gcd", "lcm", "max", "min", "floor", "ceil", "abs") and self._next() not in ("(", "{")
        ):
            raise Unreadable(f"{name} of nothing")
        inverse = power == Number(Fraction(-1)) and (name in TRIGONOMETRIC or name.removesuffix("h") in TRIGONOMETRIC)
        arguments = self._arguments(name)
        if inverse:
            return Operation("arc" + name, arguments)
        name = f"arc{name[1:]}" if name in ("asin", "acos", "atan") else "log" if name == "lg" else name
        node: Node = Operation(name, arguments if base is None else (*arguments, base))
        return Operation("^", (node, power)) if power is not None else node

    def _base(self) -> Node:
        r"""Parse the base of a logarithm: all digits in ``\log_{10}5`` and ``log_10 5``, only the first in ``\log_23``,
        which ends there."""
        follows = self._next(1)
        return self._argument(digits=follows == "(" or self._begins_factor(follows))

    def _root(self) -> Node:
        degree: Node = Number(Fraction(2))
        if self._next() == "[":
            self._take()
            degree = self._sum()
            self._expect("]")
        return Operation("root", (self._argument(digits=True), degree))

    def _arguments(self, name: str) -> tuple[Node, ...]:
        """Parse arguments: those in brackets, or the factors side by side up to the next function."""
        if self._next() in ("(", "{", "["):
            closer = CLOSERS[self._take()]
            found = [self._sum()]
            while self._accept(","):
                found.append(self._sum())
            self._expect(closer)
            return tuple(found)
        node = self._signed_factor()
        while True:
            token = self._next()
            if token.lstrip("\\") in FUNCTIONS - {"sqrt"} or not (
                self._begins_factor(token) or (token == "/" and name in TRIGONOMETRIC)
            ):
                return (node,)
            node = Operation("/", (node, self._factor())) if self._accept("/") else self._joined(node)

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
