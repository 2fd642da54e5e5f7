"""The rule reward: is the answer right? (layer 0: standard library only)

DAPO eq. 7: +1 if the final answer is equivalent to the gold one, -1 if not. Extraction is strict, so that a response
that merely contains the right number somewhere is wrong and the format is learnt: the last ``Answer: ...`` or the last
``\\boxed{...}``, whichever comes later, near the end of the response.

Two answers are compared as text, then as exact numbers, which settles all but algebra; :func:`compare` says what is left
to ask. Nothing here computes more than a few thousand digits or takes longer than a millisecond, whatever a response says.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

TAIL = 2000
"""Characters at the end of a response in which the answer must stand."""
LONGEST_ANSWER = 200
"""Characters of an answer that is more than text or a number; a longer one is wrong, unless the gold one is long too."""

RIGHT = 1.0
WRONG = -1.0


# ---------------------------------------------------------------------------------------------------- extraction

_ANSWER_LINE = re.compile(
    r"(?<![a-z])answer[ \t]{0,3}[*_}]{0,4}[ \t]{0,3}[:\uff1a]\s*[*_}]{0,4}\s*(\$\$.*?\$\$|\\\[.*?\\\]|[^\n]*)",
    re.IGNORECASE | re.DOTALL,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MINERVA = re.compile(r"the final answer is:?\s*(.*?)[.\s]*I hope it is correct[.\s]*", re.IGNORECASE | re.DOTALL)
_CLOSING = re.compile(r"[\s}$.*)\]\\]*")


def extract_answer(response: str) -> str | None:
    """The final answer a response gives, or None.

    What a thinking model writes before ``</think>`` does not count. The last attempt does: an empty ``Answer:`` or an
    unclosed box after an earlier answer leaves none.
    """
    tail = response[-TAIL:].rpartition("</think>")[2]
    if "<think>" in tail:
        return None
    line = _last(_ANSWER_LINE, tail)
    box = _last(_BOX, tail)
    if box and (line is None or box.start() > line.start()):
        answer = _braced(tail, box.end())
    elif line:
        answer = line[1]
        while inner := _last(_ANSWER_LINE, answer):
            answer = inner[1]
        answer = _without_unmatched_braces(answer)
        sentence = _MINERVA.fullmatch(answer.strip())
        answer = sentence[1] if sentence else answer
    else:
        return None
    return (answer or "").strip() or None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    return last


def _unmatched_brace(text: str, start: int) -> int | None:
    """Where the first closing brace without an opening one stands, from ``start`` on; None without one."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return match.start()
    return None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace opened just before ``start`` and the one that closes it."""
    end = _unmatched_brace(text, start)
    return None if end is None else text[start:end]


def _without_unmatched_braces(text: str) -> str:
    r"""``7`` for the ``7}`` of ``\text{Answer: 7}``."""
    end = _unmatched_brace(text, 0)
    return text[:end] if end is not None and _CLOSING.fullmatch(text, end) else text


# ------------------------------------------------------------------------------------------------ canonical text

_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("(?<=[0-9])(?=[¼½¾⅐-⅞])")
_SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2044": "/", "\u00f7": "/", "\u00d7": r"\times ", "\u00b7": r"\cdot ",
        "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u222a": r"\cup ",
        "\u00b0": " degrees ", "\u221a": r"\sqrt ",
    }
)  # fmt: skip
_REPLACED = (
    (re.compile(r"(?<!\\)\\!|\\displaystyle|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\[,;: ()\[\]]|\\q?quad(?![a-zA-Z])|\*\*|`|~|\\?\$"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])"), " degrees "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r",?\s(?:or|and)\s"), ","),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
)
_WRAPPER = (
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|boldsymbol|bold|bm|mbox|operatorname|underline|boxed|fbox)\s*"
)
_WRAPPED = re.compile(_WRAPPER + r"\{([^{}]*)\}")
_WRAPPED_BRACES = re.compile(_WRAPPER + r"(?=\{)")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z])(?<![0-9],) |(?<=[0-9],) (?![0-9]{3}(?![0-9]))| (?![0-9A-Za-z])")
_CHOICE = re.compile(r"\(([A-Za-z])\)|([A-Z])\)")


def canonical(answer: str) -> str:
    """An answer's text without what does not change its meaning: decoration, spaces, ways to write a sign.

    A space stays where taking it away would join two words or two numbers: ``3 4`` is not 34, ``1, 234`` not 1234.
    """
    text = _VULGAR.sub(" ", answer)
    text = _SUPERSCRIPT.sub(lambda raised: f"^{{{raised[0]}}}", text)
    text = _SUBSCRIPT.sub(lambda lowered: f"_{{{lowered[0]}}}", text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = "".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in text)
    while (unwrapped := _WRAPPED.sub(r" \1 ", text)) != text:
        text = unwrapped
    text = _WRAPPED_BRACES.sub("", text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _LOOSE_SPACE.sub("", " ".join(text.split())).rstrip(".,;:*_ ")
    choice = _CHOICE.fullmatch(text)
    return choice[1] or choice[2] if choice else text


# ----------------------------------------------------------------------------------------------- units and numbers

_UNITS = {
    name: names[0]
    for names in (
        line.split()
        for line in """
            mm millimeter millimeters millimetre millimetres
            cm centimeter centimeters centimetre centimetres
            m meter meters metre metres
            km kilometer kilometers kilometre kilometres
            inch in inches
            foot ft feet
            yard yd yards
            mile mi miles
            mg milligram milligrams
            g gram grams
            kg kilogram kilograms
            pound lb lbs pounds
            ounce oz ounces
            ton tons tonne tonnes
            s sec second seconds
            min minute minutes
            h hr hour hours
            day days
            week weeks
            month months
            year years
            ml milliliter milliliters millilitre millilitres
            l L liter liters litre litres
            gallon gallons
            degree degrees
            radian radians rad
            % percent
            dollar dollars USD
            cent cents
            euro euros EUR €
            sterling GBP £
            yen JPY ¥
            unit units
            point points
            mph
            mol
            Hz
            J joule joules
            N newton newtons
            W watt watts
            V volt volts
        """.strip().splitlines()
    )
    for name in names
}
_WORD = "(?:" + "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True)) + ")"
_UNIT = re.compile(
    rf"(?P<number>.*(?:[0-9)}}]|\\pi))(?P<space> ?)(?P<kind>square |sq |cubic )?(?P<unit>{_WORD})(?P<power>\^\{{?[23]\}}?|[23])?"
    rf"(?:(?:/| per )(?P<per>{_WORD})(?P<per_power>\^\{{?[23]\}}?)?)?",
    re.DOTALL,
)
_COUNTED = re.compile(
    r"(?P<number>.*(?:[0-9] |[)}]))(?!.*(?:ths|thirds|quarters|halves|pairs|tens|dozens|scores|hundreds|thousands|illions))"
    r"(?!times|always|perhaps)(?P<things>[a-z]{2,}[a-hj-rtv-z]s|people|children|men|women)",
    re.DOTALL,
)
"""A number of things: a plural that is no quantity itself, nor an adverb like ``thus``."""
_CURRENCY = re.compile(r"(?P<before>[€£¥])? ?(?P<number>[^€£¥]+?) ?(?P<after>[€£¥])?", re.DOTALL)


def split_unit(text: str) -> tuple[str, str | None]:
    """A canonical text as number and unit, whose spelling is evened out; unit None where none is known.

    One letter is a unit only after a space: ``5 m`` is a length, ``5m`` algebra.
    """
    if (amount := _CURRENCY.fullmatch(text)) and (currency := amount["before"] or amount["after"]):
        return amount["number"], _UNITS[currency]
    match = _UNIT.fullmatch(text)
    if match is None or (len(match["unit"]) == 1 and match["unit"] != "%" and not _separate(match)):
        counted = _COUNTED.fullmatch(text)
        return (counted["number"].rstrip(), counted["things"]) if counted else (text, None)
    power = {"square ": "2", "sq ": "2", "cubic ": "3", None: ""}[match["kind"]] or _digits(match["power"])
    per = f"/{_UNITS[match['per']]}{_digits(match['per_power'])}" if match["per"] else ""
    return match["number"], _UNITS[match["unit"]] + power + per


def _separate(match: re.Match[str]) -> bool:
    r"""Whether a space tells number and unit apart; the one in ``2\pi h`` just ends the command."""
    return bool(match["space"]) and not match["number"].endswith(r"\pi")


def _digits(text: str | None) -> str:
    return "".join(sign for sign in text or "" if sign.isdigit())


_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:([, ])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_FORMS = {
    "decimal": re.compile(rf"({_DECIMAL})"),
    "ratio": re.compile(rf"\(?(-?{_DECIMAL})\)?/\(?(-?{_DECIMAL})\)?|\\frac\{{(-?{_DECIMAL})\}}\{{(-?{_DECIMAL})\}}"),
    "mixed": re.compile(r"(\d+)(?: (\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\})"),
    "recurring": re.compile(r"(\d+)\.(\d*)\\(?:overline|bar)\{(\d+)\}"),
    "power": re.compile(r"(\d+)\^\{?(-?\d{1,4})\}?"),
    "scientific": re.compile(rf"({_DECIMAL})(?:[eE]|\\(?:times|cdot) ?10\^)\{{?([-+]?\d{{1,4}})\}}?"),
}
_MOST_DIGITS = 4000


def exact_value(text: str) -> Fraction | None:
    """The number that a canonical text writes down, exactly: an integer, a decimal, a recurring one, a fraction, a mixed
    number, a power of two integers, scientific notation. None for everything else, and for more than 4,000 digits."""
    if len(text) > _MOST_DIGITS:
        return None
    text = text[1:-1] if text[:1] + text[-1:] in ("()", "{}") and "," not in text else text
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    sign = -1 if text.startswith("-") else 1
    text = text[1:] if text[:1] in ("+", "-") else text
    for form, pattern in _FORMS.items():
        if match := pattern.fullmatch(text):
            value = _value(form, [group for group in match.groups() if group is not None])
            return None if value is None else sign * value
    return None


def _value(form: str, parts: list[str]) -> Fraction | None:
    if form == "recurring":
        whole, fixed, period = parts
        return Fraction(f"{whole}.{fixed}0") + Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    first, *rest = map(Fraction, parts)
    if form == "decimal":
        return first
    if form == "ratio":
        return first / rest[0] if rest[0] else None
    if form == "mixed":
        return first + rest[0] / rest[1] if rest[0] < rest[1] else None
    exponent = int(parts[1])
    if form == "scientific":
        return first * Fraction(10) ** exponent if abs(exponent) <= _MOST_DIGITS else None
    if len(parts[0]) * abs(exponent) > _MOST_DIGITS or (first == 0 and exponent < 0):
        return None
    return first**exponent


def answer_key(answer: str) -> str:
    """Equal for answers that are the same text or the same number, in decimal digits or as a reduced fraction."""
    text = canonical(answer)
    value = exact_value(text)
    return text if value is None or value.numerator.bit_length() > 2 * _MOST_DIGITS else str(value)


# -------------------------------------------------------------------------------------------------- the comparison

_RELATION = re.compile(r"[<>,;]|\\(?:le|ge|ne|leq|geq|neq|lt|gt|in|approx|sim|equiv)(?![a-zA-Z])")
_PROSE = re.compile(r"(?<![\\A-Za-z])(?![A-Z]{3,4}(?![A-Za-z]))[A-Za-z]{3,}")
"""A word; ``ABC`` and ``ABCD`` are points, as in the angle ABC."""
_NAME = re.compile(r"\A(?:\\[a-z]+ ?)?[A-Za-z]+(?==)")
"""What an answer calls its value: ``Area=12``."""
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}")
_FUNCTIONS = re.compile(r"arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|exp|sqrt|gcd|lcm|max|min")
_NEIGHBOURS = re.compile(r"(?<![_^0-9])[0-9]+ [0-9]")
_BASE = re.compile(r"[0-9)]_")
_PRIME = re.compile(r"[A-Za-z]'")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Algebra:
    """What text and exact numbers cannot decide: are these two expressions equal?"""

    answer: str
    label: str


def compare(answer: str, label: str) -> bool | Algebra:
    """Whether an extracted answer equals the gold one, or the question that only algebra answers.

    Of a label as GSM8K has it, what follows the last ``####`` is the gold one.
    """
    mine, gold = canonical(answer), canonical(label.rpartition("####")[2])
    if mine.replace(", ", ",") == gold.replace(", ", ","):
        return bool(mine)
    mine, gold = _last_side(mine, gold), _last_side(gold, mine)
    (mine, my_unit), (gold, gold_unit) = split_unit(mine), split_unit(gold)
    if my_unit and gold_unit and my_unit != gold_unit:
        return False
    if mine == gold:
        return bool(mine)
    my_value, gold_value = exact_value(mine), exact_value(gold)
    if my_value is not None and gold_value is not None:
        mine_in_ones = my_value / 100 if my_unit == "%" else my_value
        gold_in_ones = gold_value / 100 if gold_unit == "%" else gold_value
        return gold_value == my_value or gold_in_ones == mine_in_ones
    if _WORDS.fullmatch(mine) and _WORDS.fullmatch(gold):
        return mine.casefold() == gold.casefold()
    if _BASE.search(mine) or _BASE.search(gold):
        return _BRACE.sub("", mine) == _BRACE.sub("", gold)  # 111_2 is neither 111 nor 111_3
    if bool(_PRIME.search(mine)) != bool(_PRIME.search(gold)):
        return False  # math-verify reads over a derivative's prime
    if len(mine) == len(gold) == 1 or len(mine) > max(LONGEST_ANSWER, 2 * len(gold)):
        return False
    return Algebra(answer=mine, label=gold) if _is_mathematics(mine) and _is_mathematics(gold) else False


def _last_side(text: str, other: str) -> str:
    r"""``7`` of ``x=3+4=7``, where ``other`` is no equation; several answers, and ``\sum_{i=1}^3``, stay as they are."""
    if _RELATION.search(text) or _is_prose(_NAME.sub("", text)) or _after_equals(other) is not None:
        return text
    side = _after_equals(text)
    return text if side is None else side


def _after_equals(text: str) -> str | None:
    """What follows the last equals sign outside all brackets; None without one."""
    depth, start = 0, None
    for position, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "=" and depth == 0:
            start = position + 1
    return None if start is None else text[start:]


def _is_prose(text: str) -> bool:
    """Whether there are words in it, which algebra would take for products of letters."""
    return not all(_FUNCTIONS.fullmatch(word[0]) for word in _PROSE.finditer(_ENVIRONMENT.sub("", text)))


def _is_mathematics(text: str) -> bool:
    """Whether algebra may be asked about it: no words, no two numbers side by side, braces in pairs, anything at all."""
    if _is_prose(text) or _NEIGHBOURS.search(text) or not any(sign.isalnum() for sign in text):
        return False
    depth = 0
    for match in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return False
    return depth == 0
