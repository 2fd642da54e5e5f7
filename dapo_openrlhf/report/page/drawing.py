"""Charts as SVG, drawn so that a chart is as wide as a phone (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dapo_openrlhf.report.page.markup import brief, shown
from dapo_openrlhf.report.smoothing import smooth, smoothing_window

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
MOST_POINTS = 240
"""Most points of a line; of longer ones each bucket's lowest and highest are drawn."""
MOST_DOTS = 40
MOST_BARS = 60
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6a00", "#666666")
"""Okabe and Ito's palette, which colour-blind readers can distinguish; yellow is darker, to be seen on white."""
DASHES = ("", "6 3", "2 3")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a chart; its points in the order of x, all finite."""

    label: str
    colour: int
    """Place in :data:`COLOURS`, beyond whose end it begins again."""
    points: Points
    dash: int = 0
    smoothed: bool = True
    """Whether a long line is drawn faintly, with its moving average on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The values that a chart spans."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> str:
        """A point as SVG coordinates."""
        return f"{self.across(x):.1f},{self.down(y):.1f}"

    def across(self, x: float) -> float:
        """Distance of x from the left edge."""
        low, high = self.x
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - low) / (high - low)

    def down(self, y: float) -> float:
        """Distance of y from the upper edge."""
        low, high = self.y
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)


def colour(place: int) -> str:
    """A colour of the palette."""
    return COLOURS[place % len(COLOURS)]


def chart(title: str, unit: str, lines: Sequence[Line], *, steps: int, note: str = "") -> str:
    """A figure of lines over 0 to ``steps``; without a point it says so."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return figure(title, unit, '<p class="none">not recorded</p>', note)
    values = [y for line in drawn for _, y in line.points]
    frame = Frame(x=(0, max(steps, 1, *(line.points[-1][0] for line in drawn))), y=_span(min(values), max(values)))
    body = "".join([*_axes(frame), *(part for line in drawn for part in _drawn(frame, line))])
    last = "; ".join(f"{line.label}: {brief(line.points[-1][1])} at step {line.points[-1][0]:.0f}" for line in drawn)
    return figure(title, unit, _svg(body, f"{title}. {last}"), note)


def stacked(title: str, unit: str, names: Sequence[str], bars: Sequence[Sequence[float]], *, top: float) -> str:
    """A figure of bars, one per step from 1, each of a part per name; ``top`` is the highest value of the axis."""
    if not bars:
        return figure(title, unit, '<p class="none">not recorded</p>')
    per_bar = math.ceil(len(bars) / MOST_BARS)
    binned = [_mean(bars[begin : begin + per_bar]) for begin in range(0, len(bars), per_bar)]
    frame = Frame(x=(0.5, len(binned) * per_bar + 0.5), y=(0.0, top or 1.0))
    parts = list(_axes(frame))
    for number, bar in enumerate(binned):
        left = frame.across(number * per_bar + 0.5)
        width = max((frame.across((number + 1) * per_bar + 0.5) - left) * 0.86, 0.8)
        below = 0.0
        for place, value in enumerate(bar):
            high, low = frame.down(below + value), frame.down(below)
            below += value
            if low - high > 0.05:
                parts.append(
                    f'<rect x="{left:.1f}" y="{high:.1f}" width="{width:.1f}" height="{low - high:.1f}" fill="{colour(place)}">'
                    f"<title>{shown(names[place])}: {brief(value)}</title></rect>"
                )
    note = f"each bar: the mean of {per_bar} steps" if per_bar > 1 else ""
    return figure(title, unit, _svg("".join(parts), title), note)


def figure(title: str, unit: str, body: str, note: str = "") -> str:
    """A figure with its title, unit and a note below."""
    said = f"<p>{shown(note)}</p>" if note else ""
    return f"<figure><figcaption>{shown(title)} <span>{shown(unit)}</span></figcaption>{body}{said}</figure>"


def legend(labels: Sequence[str], dashes: Sequence[str] = ()) -> str:
    """What colours, and dashes, stand for."""
    keys = [
        f'<span><i style="background:{colour(place)}"></i>{shown(label)}</span>' for place, label in enumerate(labels)
    ]
    return f'<p class="legend">{"".join(keys)}{"".join(f"<span>{shown(dash)}</span>" for dash in dashes)}</p>'


def thinned(points: Points) -> Points:
    """At most :data:`MOST_POINTS` of the points, extremes among them."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for begin in range(0, len(points), size):
        bucket = points[begin : begin + size]
        ends = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept


def _mean(bars: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*bars, strict=True)]


def _drawn(frame: Frame, line: Line) -> Iterator[str]:
    style = f'fill="none" stroke="{colour(line.colour)}" stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"'
    window = smoothing_window(len(line.points)) if line.smoothed else 1
    if window > 1:
        yield f'<polyline {style} stroke-width="1" opacity=".3" points="{_places(frame, line.points)}"/>'
    averages = smooth([y for _, y in line.points], window)
    bold = [(x, y) for (x, _), y in zip(line.points, averages, strict=True)]
    yield f'<polyline {style} stroke-width="2" points="{_places(frame, bold)}"/>'
    if len(line.points) <= MOST_DOTS:
        for x, y in line.points:
            yield (
                f'<circle cx="{frame.across(x):.1f}" cy="{frame.down(y):.1f}" r="2.6" fill="{colour(line.colour)}">'
                f"<title>{shown(line.label)}, step {x:.0f}: {brief(y)}</title></circle>"
            )


def _places(frame: Frame, points: Points) -> str:
    return " ".join(frame.place(x, y) for x, y in thinned(points))


def _svg(body: str, description: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{shown(description)}">{body}</svg>'


def _span(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis around two values, which may be equal; it begins at 0 where that is near."""
    if low >= 0 and low <= 0.5 * high:
        low = 0.0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - room), high + room


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within two values, about ``most`` of them."""
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)][: 3 * most]


def _axes(frame: Frame) -> Iterator[str]:
    for value in ticks(*frame.y, 4):
        y = frame.down(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{brief(value)}</text>'
    for value in ticks(*frame.x, 5):
        if value == round(value):
            yield f'<text x="{frame.across(value):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{brief(value)}</text>'
