"""Compares an answer with the gold one: by text, by exact numbers, then kind by kind, single expressions by algebra."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from dapo_openrlhf.rewards.verifier import values
from dapo_openrlhf.rewards.verifier.choices import by_choice
from dapo_openrlhf.rewards.verifier.items import entries, located, unnamed_items, vector
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
from dapo_openrlhf.rewards.verifier.names import is_asked_for, is_name, same_name
from dapo_openrlhf.rewards.verifier.numbers import MOST_DIGITS, exact_value, is_plain_number, with_decimal_comma
from dapo_openrlhf.rewards.verifier.readings import readings
from dapo_openrlhf.rewards.verifier.regions import region_of
from dapo_openrlhf.rewards.verifier.text import canonical
from dapo_openrlhf.rewards.verifier.units import split_unit
from dapo_openrlhf.rewards.verifier.words import is_mathematics, is_prose, is_verdict, same_times, same_words, says_same

LONGEST_ANSWER = 200
"""Most characters of an answer that is more than text or a number; a longer one is wrong, unless the gold one is long
too."""
LONGEST_READ = 2000
"""Most characters of either answer for it to be read as more than text or a number."""
MOST_ITEMS = 100
"""Most items of a list or set that is compared item by item."""


_THIN_THOUSANDS = re.compile(r"(?<=\d),\\[,;:] ?(?=\d{3}(?!\d))")
"""A comma with a thin space after it, as in ``12,\\,500``, which is one number where the gold answer is a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algebra:
    """A question that text and exact numbers cannot decide: whether two expressions, or equations, are equal."""

    answer: str
    label: str


Equal: TypeAlias = Callable[[Algebra], bool]
"""A function that decides by algebra; it raises an error when it cannot."""


def compare(answer: str, label: str, equal: Equal, *, number_form: bool = False) -> bool:
    """Whether an extracted answer equals the gold one. Raises what ``equal`` raises.

    In a label of GSM8K's form, the gold answer is what follows the last ``####``. With ``number_form`` an answer must
    be written as a number where the label is one: ``17*23`` is not 391, nor is ``782/2``.
    """
    mine, gold = canonical(answer), canonical(label.rpartition("####")[2])
    if not mine or not gold:
        return False
    if _same_text(mine, gold):
        return True
    if (verdict := by_choice(mine, gold)) is not None:
        return verdict
    mine, gold = _joined_thousands(answer, mine, gold), _joined_thousands(label, gold, mine)
    if (verdict := _by_value(mine, gold, number_form=number_form)) is not None:
        return verdict
    if len(mine) > max(LONGEST_ANSWER, 2 * len(gold)) or max(len(mine), len(gold)) > LONGEST_READ:
        return False
    my_value, gold_value = values.read(mine), values.read(gold)
    if number_form and not _has_number_form(my_value, gold_value):
        return False
    return _Comparison(equal).match(my_value, gold_value)


def _joined_thousands(raw: str, text: str, other: str) -> str:
    """The canonical text of ``raw``, with thin spaces behind commas read as thousands if the other text is a number."""
    is_joined = _THIN_THOUSANDS.search(raw) is not None and exact_value(other) is not None
    return canonical(_THIN_THOUSANDS.sub("", raw)) if is_joined else text


def answer_key(answer: str) -> str:
    """A key that is equal for answers that are the same text or number, in decimal digits or as a reduced fraction."""
    text = canonical(answer)
    value = exact_value(text)
    return text if value is None or value.numerator.bit_length() > 2 * MOST_DIGITS else str(value)


def _same_text(mine: str, gold: str) -> bool:
    return mine == gold or mine.replace(", ", ",") == gold.replace(", ", ",")


def _by_value(mine: str, gold: str, *, number_form: bool) -> bool | None:
    """The verdict on two exact numbers; None where one of the texts is not an exact number."""
    right = exact_value(gold)
    if right is None:
        return None
    value = exact_value(mine)
    if value is None:
        value = with_decimal_comma(mine)
        return value == right if value is not None else None
    if number_form and not is_plain_number(mine) and is_plain_number(gold):
        return False
    return value == right


def _has_number_form(mine: Value, gold: Value) -> bool:
    """Whether an answer is a number, where the gold one is."""
    wanted = _value_text(gold, is_name)
    if wanted is None or not is_plain_number(split_unit(wanted)[0]):
        return True
    found = _value_text(mine, is_name)
    return found is not None and is_plain_number(split_unit(found)[0])


def _value_text(value: Value, named: Callable[[str], bool]) -> str | None:
    """The text of a single value, without the name that it is given."""
    match value:
        case Expression(text):
            return text
        case Equation(left, right) if named(left):
            return right
        case _:
            return None


class _Comparison:
    """Compares values kind by kind, by algebra where necessary."""

    def __init__(self, equal: Equal) -> None:
        self._equal = equal

    def match(self, mine: Value, gold: Value) -> bool:
        """Whether two values are the same."""
        mine, gold = self._without_names(mine, gold)
        match mine, gold:
            case (Expression(one), Expression(other)):
                return self._expressions(one, other)
            case (Words(one), Words(other)):
                return same_words(one, other) or says_same(one, other)
            case (Words(one), Expression(other)) | (Expression(other), Words(one)):
                return same_words(one, other) or says_same(one, other)
            case (Based(), Based()):
                return mine == gold
            case (Matrix(), Matrix()):
                return self._matrices(mine, gold)
            case (Equation(), Equation()):
                return self._equations(mine, gold)
            case (Relation(), Relation()):
                return self._relations(mine, gold)
            case (Several(), Several()):
                return self._several(mine, gold)
            case (Region(), _) | (_, Region()):
                return self._regions(mine, gold)
            case (Matrix(), Several(kind="tuple" | "vector" as kind)) | (
                Several(kind="tuple" | "vector" as kind),
                Matrix(),
            ):
                return self._several(vector(mine, kind), vector(gold, kind))
            case (Several(kind="list" | "set", items=(one_item,)), _):
                return self.match(one_item, gold)
            case (_, Several(kind="list" | "set", items=(one_item,))):
                return self.match(mine, one_item)
            case _:
                return False

    def _without_names(self, mine: Value, gold: Value) -> tuple[Value, Value]:
        """The two values without a name that only one side gives: ``7`` for ``x=7``."""
        mine, gold = located(mine, gold), located(gold, mine)
        if isinstance(mine, Several) and isinstance(gold, Several):
            return (unnamed_items(mine, gold), unnamed_items(gold, mine))
        if isinstance(mine, Equation) and not isinstance(gold, Equation):
            if is_name(mine.left) or (is_asked_for(mine.left) and exact_value(split_unit(mine.right)[0]) is not None):
                mine = self._last_of_chain(mine.right)
                if isinstance(mine, Several) and isinstance(gold, Several):
                    gold = unnamed_items(gold, mine)
            elif isinstance(gold, Expression) and not is_plain_number(mine.left) and not _has_letters(mine):
                mine = self._last_of_chain(f"{mine.left}={mine.right}")
        elif isinstance(gold, Equation) and not isinstance(mine, Equation) and is_name(gold.left):
            gold = self._last_of_chain(gold.right)
            if isinstance(mine, Several) and isinstance(gold, Several):
                mine = unnamed_items(mine, gold)
        return mine, gold

    def _last_of_chain(self, text: str) -> Value:
        """The ``7`` of ``3+4=7``; where the chain does not hold, the chain itself, which equals nothing."""
        text = text.partition(r"\approx")[0]
        sides = values.split(text, ("=",))
        if len(sides) == 1:
            return values.read(text)
        if all(self._expressions(side, sides[-1]) for side in sides[:-1]):
            return values.read(sides[-1])
        return Words(text)

    def _expressions(self, one: str, other: str) -> bool:
        if _same_text(one, other):
            return bool(one)
        one, other = one.partition(r"\approx")[0], other.partition(r"\approx")[0]
        (mine, my_unit), (gold, gold_unit) = split_unit(one), split_unit(other)
        return any(self._same(*reading) for reading in readings(mine, my_unit, gold, gold_unit))

    def _same(self, mine: str, gold: str, factor: Fraction) -> bool:
        """Whether an expression without a unit equals another, once it is multiplied with ``factor``."""
        if mine == gold and factor == 1:
            return bool(mine)
        my_value, gold_value = exact_value(mine), exact_value(gold)
        if my_value is not None and gold_value is not None:
            return my_value * factor == gold_value
        if r"\pmod" in mine or r"\pmod" in gold:
            return self._residues(mine.partition(r"\pmod"), gold.partition(r"\pmod"))
        if ":" in mine or ":" in gold:
            return same_times(mine, gold) or self._ratios(mine, gold)
        if not (is_mathematics(mine) and is_mathematics(gold)) or (len(mine) == len(gold) == 1):
            return False
        scaled = mine if factor == 1 else f"({mine})\\cdot\\frac{{{factor.numerator}}}{{{factor.denominator}}}"
        return self._equal(Algebra(answer=scaled, label=gold))

    def _residues(self, mine: tuple[str, str, str], gold: tuple[str, str, str]) -> bool:
        r"""Whether residues such as ``3\pmod 7`` are the same: the number, and the modulus where both name one."""
        one, other = mine[2].strip("{() }"), gold[2].strip("{() }")
        return self._same(mine[0], gold[0], Fraction(1)) and (
            not (one and other) or self._same(one, other, Fraction(1))
        )

    def _ratios(self, mine: str, gold: str) -> bool:
        first, second = mine.split(":"), gold.split(":")
        if {len(first), len(second)} == {1, 2}:  # 3:2 for 3/2
            first, second = mine.replace(":", "/").split(":"), gold.replace(":", "/").split(":")
        return (
            len(first) == len(second)
            and all(exact_value(part) is not None for part in (*first, *second))
            and all(exact_value(one) == exact_value(other) for one, other in zip(first, second, strict=True))
        )

    def _several(self, mine: Several, gold: Several) -> bool:
        if len(mine.items) != len(gold.items) or len(gold.items) > MOST_ITEMS:
            return False
        kinds = {mine.kind, gold.kind}
        if kinds & {"tuple", "vector", "named"}:
            if "set" in kinds or ("list" in kinds and "named" not in kinds):
                return False
            return all(map(self.match, mine.items, gold.items))
        if all(isinstance(item, Words) and is_verdict(item.text) for item in gold.items):
            return all(map(self.match, mine.items, gold.items))
        return self._in_some_order(mine.items, gold.items)

    def _in_some_order(self, mine: Sequence[Value], gold: Sequence[Value]) -> bool:
        """Whether the items can be paired; as equality is transitive, each takes the first partner that fits."""
        left = list(gold)
        for item in mine:
            place = next((index for index, other in enumerate(left) if item == other), None)
            if place is None:
                place = next((index for index, other in enumerate(left) if self.match(item, other)), None)
            if place is None:
                return False
            del left[place]
        return True

    def _matrices(self, mine: Matrix, gold: Matrix) -> bool:
        if mine.determinant != gold.determinant or [len(row) for row in mine.rows] != [len(row) for row in gold.rows]:
            return False
        return all(
            self._expressions(one, other)
            for my_row, gold_row in zip(entries(mine), entries(gold), strict=True)
            for one, other in zip(my_row, gold_row, strict=True)
        )

    def _equations(self, mine: Equation, gold: Equation) -> bool:
        if is_name(mine.left) and is_name(gold.left):
            my_value, gold_value = values.read(mine.right), values.read(gold.right)
            if same_name(mine.left, gold.left) and self.match(self._last_of_chain(mine.right), gold_value):
                return True
            if not (isinstance(my_value, Expression) and isinstance(gold_value, Expression)):
                return False
        if any(
            is_prose(side) or "=" in side or values.has_plus_minus(side)
            for side in (mine.left, mine.right, gold.left, gold.right)
        ):
            return False
        if "," in mine.left or "," in gold.left:
            return False
        if not is_mathematics(f"{mine.left} {mine.right}".replace(" ", "")) or len(gold.left) + len(gold.right) < 2:
            return False
        return self._equal(Algebra(answer=f"{mine.left}={mine.right}", label=f"{gold.left}={gold.right}"))

    def _relations(self, mine: Relation, gold: Relation) -> bool:
        for one, left, right in ((mine.sign, mine.left, mine.right), (_mirrored(mine.sign), mine.right, mine.left)):
            if one == gold.sign and self._expressions(left, gold.left) and self._expressions(right, gold.right):
                return True
        if mine.sign not in _DIRECTIONS or gold.sign not in _DIRECTIONS:
            return False
        (one, my_way), (other, gold_way) = _DIRECTIONS[mine.sign], _DIRECTIONS[gold.sign]
        if one != other:
            return False
        left = f"({mine.left})-({mine.right})" if my_way == gold_way else f"({mine.right})-({mine.left})"
        return self._equal(Algebra(answer=left, label=f"({gold.left})-({gold.right})"))

    def _regions(self, mine: Value, gold: Value) -> bool:
        mine, gold = _with_pieces(mine), _with_pieces(gold)
        one, other = region_of(mine), region_of(gold)
        if (isinstance(mine, Several) and isinstance(gold, Several)) or one is None or other is None:
            return False
        if one.name and other.name and not same_name(one.name, other.name):
            return False
        if len(one.pieces) != len(other.pieces):
            return False
        left = list(other.pieces)
        for piece in one.pieces:
            place = next((index for index, candidate in enumerate(left) if self._intervals(piece, candidate)), None)
            if place is None:
                return False
            del left[place]
        return True

    def _intervals(self, one: Interval, other: Interval) -> bool:
        return (
            (one.with_low, one.with_high) == (other.with_low, other.with_high)
            and self._expressions(one.low.removeprefix("+"), other.low.removeprefix("+"))
            and self._expressions(one.high.removeprefix("+"), other.high.removeprefix("+"))
        )


_DIRECTIONS = {"<": ("strict", -1), ">": ("strict", 1), "<=": ("loose", -1), ">=": ("loose", 1), "!=": ("unequal", 1)}


def _mirrored(sign: str) -> str:
    return {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign, sign)


def _with_pieces(value: Value) -> Value:
    """Turn a region of single numbers only into a set of them."""
    if isinstance(value, Region) and all(piece.low == piece.high for piece in value.pieces):
        return Several("set", tuple(Expression(piece.low) for piece in value.pieces))
    return value


def _has_letters(equation: Equation) -> bool:
    return any(
        sign.isalpha() for sign in equation.left.replace(r"\frac", "").replace(r"\cdot", "").replace(r"\times", "")
    )
