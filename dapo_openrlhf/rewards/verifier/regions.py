"""Sets of real numbers that are given by bounds, as intersections or unions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dapo_openrlhf.rewards.verifier.kinds import Equation, Expression, Interval, Region, Several, Value
from dapo_openrlhf.rewards.verifier.names import is_name
from dapo_openrlhf.rewards.verifier.numbers import exact_value

EVERYTHING = (Interval(r"-\infty", r"\infty", False, False),)


def all_but(value: Value) -> Region:
    """All numbers except one or several, which must be in order or exact."""
    points = [
        item.text for item in (value.items if isinstance(value, Several) else (value,)) if isinstance(item, Expression)
    ]
    points.sort(key=lambda point: (exact_value(point) or 0, point))
    edges = [r"-\infty", *points, r"\infty"]
    return Region(tuple(Interval(low, high, False, False) for low, high in itertools.pairwise(edges)))


def as_region(value: Value) -> Value:
    """The value as a region where it may stand for one: a pair as an interval, a set of numbers."""
    match value:
        case Several(kind="tuple", items=(Expression(low), Expression(high))):
            return Region((Interval(low, high, False, False),))
        case Several(kind="list", items=items) if items and all(_is_interval(item) for item in items):
            return joined([as_region(item) for item in items], union=True)
        case Several(kind="set", items=items) if all(isinstance(item, Expression) for item in items):
            return Region(
                tuple(Interval(item.text, item.text, True, True) for item in items if isinstance(item, Expression))
            )
        case _:
            return value


def _is_interval(value: Value) -> bool:
    match value:
        case Region() | Several(kind="tuple", items=(Expression(), Expression())):
            return True
        case _:
            return False


def region_of(value: Value) -> Region | None:
    """The value as a region; None if it cannot be one."""
    region = as_region(value)
    return region if isinstance(region, Region) else None


def joined(values: list[Value], *, union: bool) -> Value:
    """The intersection of bounds, or with ``union`` their union; a list where the values are not bounds."""
    if union and any(isinstance(value, Region) for value in values):
        values = [_point(value) for value in values]
    if not all(isinstance(value, Region) for value in values):
        return Several("list", tuple(values))
    regions = [value for value in values if isinstance(value, Region)]
    name = next((region.name for region in regions if region.name), "")
    if any(region.name not in ("", name) for region in regions):
        return Several("list", tuple(values))
    if union:
        return Region(_merged([piece for region in regions for piece in region.pieces]), name)
    found = regions[0].pieces
    for region in regions[1:]:
        found = tuple(piece for one in found for other in region.pieces for piece in _common(one, other))
    return Region(found, name)


def listed(values: list[Value]) -> Value:
    """Bounds separated by commas or ``and``: their intersection, or the union of two disjoint ones: ``x<0, x>5``."""
    both = joined(values, union=False)
    is_empty = isinstance(both, Region) and not both.pieces
    return joined(values, union=True) if is_empty and len(values) == 2 else both


def _point(value: Value) -> Value:
    """An equation such as ``x=3`` as the number 3, where it stands next to bounds."""
    if isinstance(value, Equation) and is_name(value.left) and exact_value(value.right) is not None:
        return Region((Interval(value.right, value.right, True, True),), value.left)
    return value


def _merged(pieces: list[Interval]) -> tuple[Interval, ...]:
    """The intervals with neighbours that share an end merged, where the ends are written alike."""
    found: list[Interval] = []
    for piece in pieces:
        if (
            found
            and found[-1].high == piece.low
            and (found[-1].with_high or piece.with_low)
            and found[-1].low != found[-1].high
        ):
            found[-1] = Interval(found[-1].low, piece.high, found[-1].with_low, piece.with_high)
        else:
            found.append(piece)
    return tuple(found)


def _common(one: Interval, other: Interval) -> Iterator[Interval]:
    """The intersection of two intervals, as far as exact numbers determine it."""
    low, with_low = _tighter(one.low, one.with_low, other.low, other.with_low, sign=1)
    high, with_high = _tighter(one.high, one.with_high, other.high, other.with_high, sign=-1)
    bottom, top = _place(low), _place(high)
    if bottom is None or top is None or bottom < top or (bottom == top and with_low and with_high):
        yield Interval(low, high, with_low, with_high)


def _tighter(one: str, with_one: bool, other: str, with_other: bool, *, sign: int) -> tuple[str, bool]:
    first, second = _place(one), _place(other)
    if one == other or (first is not None and first == second):
        return one, with_one and with_other
    if first is None or second is None:
        return (one, with_one) if "\\infty" in other else (other, with_other)
    return (one, with_one) if sign * first > sign * second else (other, with_other)


def _place(end: str) -> float | None:
    if r"\infty" in end:
        return float("-inf") if end.startswith("-") else float("inf")
    value = exact_value(end)
    return (
        None
        if value is None or value.numerator.bit_length() > 900 or value.denominator.bit_length() > 900
        else float(value)
    )
