"""Reads a canonical text as one of the kinds of answers. Expressions stay text, which algebra parses."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from dapo_openrlhf.rewards.verifier.kinds import (
    Based,
    Equation,
    Expression,
    Interval,
    Matrix,
    Region,
    Relation,
    Several,
    Value,
    Words,
)
from dapo_openrlhf.rewards.verifier.names import is_name
from dapo_openrlhf.rewards.verifier.numbers import exact_value
from dapo_openrlhf.rewards.verifier.regions import EVERYTHING, all_but, as_region, joined, listed
from dapo_openrlhf.rewards.verifier.units import split_unit
from dapo_openrlhf.rewards.verifier.words import is_prose

DEEPEST = 12
"""Deepest nesting of brackets that are read as kinds of their own."""


_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[()\[\]{}]|,|;|=|<|>|:|[^\\()\[\]{},;=<>:]+|\\", re.DOTALL)
_OPENING = frozenset(("(", "[", "{", r"\{", r"\langle", r"\begin", r"\lfloor", r"\lceil"))
_CLOSING = frozenset((")", "]", "}", r"\}", r"\rangle", r"\end", r"\rfloor", r"\rceil"))
_SIGNS = {"<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
_OTHER_RELATIONS = frozenset(
    (r"\equiv", r"\to", r"\sim", r"\parallel", r"\perp", r"\cong", r"\subset", r"\subseteq", r"\Leftrightarrow")
)
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_BASED = re.compile(r"\(?([0-9][0-9A-Fa-f]*(?:\.[0-9]+)?)\)?_\{? ?(\d{1,2}|[a-z]{3,11}) ?\}?")
_CONDITION = re.compile(r"[A-Za-z](?:\\in ?[^|:]{1,20})?[|:]")
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "sixteen": "16",
}
_MATRIX = re.compile(r"(.*?)\\begin ?\{([a-zA-Z]*matrix|array)\*?\}(?:\{[clr|]*\})?(.*)\\end ?\{\2\*?\}", re.DOTALL)
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_ABSOLUTE = re.compile(r"\|([A-Za-z])([-+]\d+(?:/\d+)?)?\|")
_NESTED = re.compile(r"\[\[[^\[\]]+\](?:,\[[^\[\]]+\])*\]")
"""A matrix as a list of rows."""
_ELLIPSIS = re.compile(r"\\ldots")


def read(text: str, depth: int = 0) -> Value:
    """Read a canonical text as the kind of answer that it is."""
    text = _unwrapped(text)
    if depth > DEEPEST or not text:
        return Expression(text)
    if based := _based(text):
        return based if based.base != "10" else Expression(based.digits)
    if matrix := _matrix(text):
        return matrix
    parts = split(text, (r"\lor", r"\land"))
    if len(parts) > 1:
        bounds = [read(part, depth + 1) for part in parts]
        return joined(bounds, union=True) if r"\lor" in text else listed(bounds)
    if "," in text and split_unit(text)[1] is not None and is_prose(text) and not split_unit(text)[0].count(","):
        return Expression(text)  # 5 feet, 4 inches
    items = _items(text)
    if len(items) > 1:
        return _several([item for item in items if item], depth) if any(items) else Expression(text)
    if is_prose(text):
        number, unit = split_unit(text)
        named = is_name(number.partition("=")[0]) and "=" in number
        return _sentence(text) if unit is None or is_prose(number) or named else Expression(text)
    if found := _bracketed(text, depth) or _relation(text, depth):
        return found
    if _PLUS_MINUS.search(text) and "," not in text:
        return Several("list", tuple(_both_signs(text, depth)))
    return Expression(text)


def _based(text: str) -> Based | None:
    match = _BASED.fullmatch(text)
    base = _BASES.get(match[2], match[2]) if match else ""
    if (
        not match
        or not base.isdigit()
        or not 2 <= int(base) <= 36
        or (int(base) <= 10 and not match[1].replace(".", "").isdigit())
    ):
        return None
    return Based(match[1].upper(), base)


def _unwrapped(text: str) -> str:
    """The text without brackets around the whole of it that hold only one value."""
    text = text.strip(" ")
    for _ in range(200):
        if len(text) < 2 or text[0] not in "({[" or _partner(text) != len(text):
            break
        inner = text[1:-1]
        if text[0] == "[" and text[-1] == "]" and not _is_single(inner):
            break
        if text[0] in "([" and (text[-1] not in ")]" or not _is_single(inner)):
            break
        if text[0] == "{" and _CONDITION.match(inner):
            break
        if text[0] == "{" and (text[-1] != "}" or len(_items(inner)) > 1):
            break
        text = inner.strip(" ")
    return text


def _is_single(inner: str) -> bool:
    return len(split(inner, (",", ";"))) == 1


def _partner(text: str) -> int:
    """Position after the bracket that closes the first one; 0 if there is none."""
    depth = position = 0
    for token in _TOKEN.findall(text):
        position += len(token)
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0:
            return position
    return 0


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    """The parts between separators outside of all brackets."""
    return [part for part, _ in _split(text, frozenset(separators))]


def _split(text: str, separators: frozenset[str]) -> list[tuple[str, str]]:
    """The parts of a text, each with the separator before it."""
    parts: list[tuple[str, str]] = []
    current: list[str] = []
    depth, before = 0, ""
    for token in _TOKEN.findall(text):
        if depth == 0 and token in separators:
            parts.append(("".join(current).strip(" "), before))
            current, before = [], token
            continue
        depth = depth + (token in _OPENING) - (token in _CLOSING)
        current.append(token)
    return [*parts, ("".join(current).strip(" "), before)]


def _items(text: str) -> list[str]:
    """The items of a list without brackets; commas between groups of three digits are not separators."""
    if "," not in text and ";" not in text:
        return [text]
    if _THOUSANDS.search(text):
        masked = _THOUSANDS.sub(lambda number: number[0].replace(",", "\x00"), text)
        if not re.search(r",(?! )", masked):
            return [part.replace("\x00", "") for part in split(masked, (",", ";"))]
    semicolons = split(text, (";",))
    return semicolons if len(semicolons) > 1 else split(text, (",",))


def _several(items: list[str], depth: int) -> Value:
    if len(items) == 1:
        return read(items[0], depth + 1)
    name, excluded, first = items[0].partition(r"\ne")
    if excluded and is_name(name) and all(exact_value(item) is not None for item in (first, *items[1:])):
        points = Several("list", tuple(Expression(item) for item in (first, *items[1:])))
        return replace(all_but(points), name=name)
    values = _named_alike([value for item in items for value in _both_signs(item, depth)])
    if any(isinstance(value, Region) and value.name for value in values) and all(
        isinstance(value, Region) for value in values
    ):
        return listed(values)
    return Several("list", tuple(values))


def _both_signs(item: str, depth: int) -> list[Value]:
    r"""Two values where an item has a ``\pm``, otherwise one."""
    if not _PLUS_MINUS.search(item) or is_prose(item) or "," in item:
        return [read(item, depth + 1)]
    pairs = (("+", "-"), ("-", "+"))
    return [
        read(re.sub(r"^\+", "", item.replace(r"\pm", one).replace(r"\mp", other)), depth + 1) for one, other in pairs
    ]


def has_plus_minus(text: str) -> bool:
    return _PLUS_MINUS.search(text) is not None


def _named_alike(values: list[Value]) -> list[Value]:
    """Carry a name over to later values: ``x=5,6`` means ``x=5`` and ``x=6``."""
    first = values[0]
    if not isinstance(first, Equation) or not is_name(first.left):
        return values
    if all(isinstance(value, Expression) and not _ELLIPSIS.search(value.text) for value in values[1:]):
        return [first, *(Equation(first.left, value.text) for value in values[1:] if isinstance(value, Expression))]
    return values


def _sentence(text: str) -> Value:
    """Read a text with words; words that name a value are removed, as in ``Area=12``."""
    sides = split(text, ("=",))
    if len(sides) > 1 and is_name(sides[0]) and not is_prose(split_unit("=".join(sides[1:]))[0]):
        return Equation(sides[0], "=".join(sides[1:]))
    return Words(text)


def _bracketed(text: str, depth: int) -> Value | None:
    """Read sets, tuples, intervals, and combinations of them."""
    pieces = split(text, (r"\cup",))
    if len(pieces) > 1:
        return joined([as_region(read(piece, depth + 1)) for piece in pieces], union=True)
    parts = split(text, (r"\cap",))
    if len(parts) > 1:
        return joined([as_region(read(part, depth + 1)) for part in parts], union=False)
    if re.fullmatch(r"\\mathbb\{R\}", text):
        return Region(EVERYTHING)
    if text in (r"\emptyset", r"\{\}", "{}"):
        return Several("set", ())
    without = split(text, (r"\setminus",))
    if len(without) == 2 and without[0] == r"\mathbb{R}":
        return all_but(read(without[1], depth + 1))
    for opening, closing in (
        (r"\{", r"\}"),
        ("{", "}"),
        (r"\langle", r"\rangle"),
        ("(", ")"),
        ("[", "]"),
        ("(", "]"),
        ("[", ")"),
    ):
        if text.startswith(opening) and text.endswith(closing) and _partner(text) == len(text):
            return _in_brackets(text[len(opening) : -len(closing)].strip(" "), opening, closing, depth)
    return None


def _in_brackets(inner: str, opening: str, closing: str, depth: int) -> Value | None:
    parts = split(inner, (",", ";"))
    if opening in (r"\{", "{"):
        condition = re.fullmatch(r"(.{1,20}?)(?:\||:)(.*)", inner, re.DOTALL)
        if condition and is_name(condition[1].partition(r"\in")[0].strip(" ")):
            return read(condition[2], depth + 1)
        return Several("set", tuple(value for part in parts if part for value in _both_signs(part, depth)))
    if (len(parts) == 2 and "[" in (opening, closing)) or ("]" in (opening, closing) and len(parts) == 2):
        return Region((Interval(parts[0], parts[1], opening == "[", closing == "]"),))
    if len(parts) > 1:
        kind: Literal["vector", "tuple"] = "vector" if opening == r"\langle" else "tuple"
        return Several(kind, tuple(read(part, depth + 1) for part in parts))
    return None


def _relation(text: str, depth: int) -> Value | None:
    """Read equations, bounds, and membership."""
    member = split(text, (r"\in",))
    if len(member) == 2 and is_name(member[0]):
        found = read(member[1], depth + 1)
        if isinstance(found, Several) and found.kind == "set":
            return found
        region = as_region(found)
        return replace(region, name=member[0]) if isinstance(region, Region) else found
    parts = _split(text, frozenset((*_SIGNS, *_OTHER_RELATIONS, "=")))
    signs = [sign for _, sign in parts[1:]]
    sides = [side for side, _ in parts]
    if not signs:
        return None
    if set(signs) == {"="}:
        return _equation(sides)
    if all(sign in _SIGNS for sign in signs):
        return _bounds(sides, [_SIGNS[sign] for sign in signs])
    return Relation("".join(signs), sides[0], "=".join(sides[1:]))


def _equation(sides: list[str]) -> Value:
    if len(sides) == 2 and is_name(sides[1]) and exact_value(sides[0]) is not None:
        sides = sides[::-1]
    return Equation(sides[0], "=".join(sides[1:])) if sides[0] else Expression(sides[-1])


def _bounds(sides: list[str], signs: list[str]) -> Value:
    if len(sides) == 3 and (is_name(sides[1]) or not sides[1]) and signs[0][0] == signs[1][0] != "!":
        low, high = (sides[0], sides[2]) if signs[0][0] == "<" else (sides[2], sides[0])
        first, last = (signs[0], signs[1]) if signs[0][0] == "<" else (signs[1], signs[0])
        return Region((Interval(low, high, "=" in first, "=" in last),), sides[1])
    if len(sides) != 2:
        return Relation(",".join(signs), sides[0], ",".join(sides[1:]))
    left, right, sign = sides[0], sides[1], signs[0]
    if is_name(right) and not is_name(left):
        left, right, sign = right, left, _MIRRORED[sign]
    if (between := _ABSOLUTE.fullmatch(left)) and (reach := exact_value(right)) is not None and reach > 0:
        return _around(between[1], -Fraction(between[2] or 0), reach, sign)
    if not (is_name(left) or not left):
        return Relation(sign, left, right)
    if sign == "!=":
        return replace(all_but(Several("list", tuple(_both_signs(right, 0)))), name=left)
    ray = (
        Interval(right, r"\infty", "=" in sign, False)
        if sign[0] == ">"
        else Interval(r"-\infty", right, False, "=" in sign)
    )
    return Region((ray,), left)


def _around(name: str, centre: Fraction, reach: Fraction, sign: str) -> Region | Relation:
    """The region in which ``|x-centre|`` is below or above ``reach``."""
    low, high, closed = str(centre - reach), str(centre + reach), "=" in sign
    match sign[0]:
        case "<":
            return Region((Interval(low, high, closed, closed),), name)
        case ">":
            outer = (Interval(r"-\infty", low, False, closed), Interval(high, r"\infty", closed, False))
            return Region(outer, name)
        case _:
            return Relation(sign, f"|{name}-({centre})|", str(reach))


def _matrix(text: str) -> Matrix | None:
    if _NESTED.fullmatch(text):
        return Matrix(tuple(tuple(row.split(",")) for row in text[2:-2].split("],[")), "")
    match = _MATRIX.fullmatch(text)
    if not match or r"\begin" in match[3] or any(sign in match[1] for sign in "=<>,"):
        return None
    rows = [row for row in re.split(r"\\\\", match[3].replace(r"\hline", "")) if row.strip(" ")]
    return Matrix(
        tuple(tuple(cell.strip(" ") for cell in row.split("&")) for row in rows),
        match[1].strip(" "),
        match[2][0] in "vV",
    )
