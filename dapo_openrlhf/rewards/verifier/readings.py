"""Two quantities without their units, in every way that a reader might understand them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from dapo_openrlhf.rewards.verifier.units import MONEY, Unit

_INVERSE = re.compile(r"(?:sin|cos|tan|cot|sec|csc) ?\^ ?\{? ?-1")


def readings(mine: str, my_unit: Unit | None, gold: str, gold_unit: Unit | None) -> Iterator[tuple[str, str, Fraction]]:
    """Yield answer and gold answer without units, and the factor by which the answer is to be multiplied.

    A unit that only one side gives is ignored, except that a percentage may also be its hundredth, and degrees may be
    meant in radians. Two units of one dimension are converted; units of different dimensions yield nothing.
    """
    if my_unit is not None and gold_unit is not None:
        if my_unit.dimension == gold_unit.dimension:
            yield mine, gold, my_unit.size / gold_unit.size
        elif {my_unit.dimension, gold_unit.dimension} == {"angle", "radian"}:
            yield _in_radians(mine, my_unit), _in_radians(gold, gold_unit), Fraction(1)
        elif _is_rate_of(my_unit, gold_unit) or _is_rate_of(gold_unit, my_unit):
            yield mine, gold, my_unit.size * my_unit.by / (gold_unit.size * gold_unit.by)
        return
    yield mine, gold, Fraction(1)
    if _is(my_unit, "percent"):
        yield mine, gold, Fraction(1, 100)
    elif _is(gold_unit, "percent"):
        yield mine, gold, Fraction(100)
    elif (_is(my_unit, "angle") and _is_in_radians(gold)) or (_is(gold_unit, "angle") and _is_in_radians(mine)):
        yield _in_radians(mine, my_unit), _in_radians(gold, gold_unit), Fraction(1)


def _is_rate_of(rate: Unit, money: Unit) -> bool:
    """Whether both are amounts of money and only one is per something: ``$45 per hour``, ``$45``."""
    return money.dimension in MONEY and rate.dimension.startswith(f"{money.dimension}/")


def _is_in_radians(text: str) -> bool:
    return r"\pi" in text or r"\arc" in text or _INVERSE.search(text) is not None


def _in_radians(text: str, unit: Unit | None) -> str:
    return f"({text})°" if _is(unit, "angle") else text


def _is(unit: Unit | None, dimension: str) -> bool:
    return unit is not None and unit.dimension == dimension
