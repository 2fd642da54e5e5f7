"""Reads the numbers in answers exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:([, ])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"([-+]?\d+(?:\.\d{3})*),(\d+)")
_FORMS = {
    "decimal": re.compile(rf"({_DECIMAL})"),
    "ratio": re.compile(rf"\(?(-?{_DECIMAL})\)?/\(?(-?{_DECIMAL})\)?|\\frac\{{(-?{_DECIMAL})\}}\{{(-?{_DECIMAL})\}}"),
    "mixed": re.compile(r"(\d+)(?: (\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\})"),
    "recurring": re.compile(r"(\d*)\.(\d*)\\overline ?\{(\d+)\}"),
    "power": re.compile(r"(\d+)\^\{?(-?\d{1,4})\}?"),
    "scientific": re.compile(rf"({_DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*) ?10\^)\{{?([-+]?\d{{1,4}})\}}?"),
}
MOST_DIGITS = 4000
"""Most digits of a number in an answer; a longer one is text."""


def exact_value(text: str) -> Fraction | None:
    """The number that a canonical text writes down, exactly: an integer, a decimal, a recurring one, a fraction, a mixed
    number, a power of two integers, scientific notation. None for everything else, and for more than 4,000 digits."""
    found = written_number(text)
    return None if found is None else found[1]


def written_number(text: str) -> tuple[str, Fraction] | None:
    """The form a number is written in, a key of the table above, and its value."""
    if len(text) > MOST_DIGITS:
        return None
    text = _bare(text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    sign = -1 if text.startswith("-") else 1
    text = text[1:].lstrip(" ") if text[:1] in ("+", "-") else text
    if not text or text[0] not in "0123456789.\\(":
        return None
    for form, pattern in _FORMS.items():
        if match := pattern.fullmatch(text):
            value = _value(form, [group for group in match.groups() if group is not None])
            return None if value is None else (form, sign * value)
    return None


def _bare(text: str) -> str:
    """A text without braces or parentheses around the whole of it."""
    while (text[:1] + text[-1:] in ("()", "{}")) and not any(sign in "(){}," for sign in text[1:-1]):
        text = text[1:-1]
    return text


def _value(form: str, parts: list[str]) -> Fraction | None:
    if form == "recurring":
        whole, fixed, period = parts
        return Fraction(f"0{whole}.{fixed}0") + Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    first, *rest = map(Fraction, parts)
    if form == "decimal":
        return first
    if form == "ratio":
        return first / rest[0] if rest[0] else None
    if form == "mixed":
        return first + rest[0] / rest[1] if rest[0] < rest[1] else None
    exponent = int(parts[1])
    if form == "scientific":
        return first * Fraction(10) ** exponent if abs(exponent) <= MOST_DIGITS else None
    if len(parts[0]) * abs(exponent) > MOST_DIGITS or (first == 0 and exponent < 0):
        return None
    return first**exponent


def with_decimal_comma(text: str) -> Fraction | None:
    """The value of ``1,5`` or ``1.234,5`` as a decimal; None for other text, and for thousands as in ``1,234``."""
    match = _DECIMAL_COMMA.fullmatch(text) if len(text) <= MOST_DIGITS and not _THOUSANDS.fullmatch(text) else None
    return Fraction(f"{match[1].replace('.', '')}.{match[2]}") if match else None


def is_plain_number(text: str) -> bool:
    """Whether a canonical text is a number that needs no further calculation: a fraction must be in lowest terms."""
    found = written_number(text)
    if found is None or found[0] == "power":
        return False
    if found[0] in ("ratio", "mixed"):
        numerals = re.findall(r"\d+(?:\.\d+)?", text)[-2:]
        bottom = Fraction(numerals[1])
        return bottom == found[1].denominator and bottom != 1
    return True
