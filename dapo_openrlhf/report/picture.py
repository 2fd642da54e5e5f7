"""Draws a run as a picture of six panels over its rollout steps (matplotlib, so import this module late)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dapo_openrlhf.report.smoothing import smooth, smoothing_window
from dapo_openrlhf.whole_file import whole_file

SIZE_INCHES = (13.0, 7.2)
DOTS_PER_INCH = 125

BLUE, RED, GREEN, INK, GREY, FRAME, GRID = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#222222",
    "#6B6B6B",
    "#B8B8B8",
    "#E6E6E6",
)
"""Colours; the first three are of Okabe and Ito's palette, which colour-blind readers can distinguish."""

PERCENT = 100.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric over the run, in the unit in which it is drawn; ``values[i]`` belongs to step ``i + 1``."""

    label: str
    colour: str
    values: Sequence[float]
    """The values, NaN where a step has none."""

    @staticmethod
    def points(values: Sequence[float]) -> list[tuple[int, float]]:
        """Step and value wherever there is a value, so that a line goes on over a step without one."""
        return [(step, value) for step, value in enumerate(values, start=1) if math.isfinite(value)]

    @property
    def recorded(self) -> bool:
        """Whether there is anything to draw."""
        return any(map(math.isfinite, self.values))


def draw_run(
    rows: Sequence[Mapping[str, float]],
    evaluations: Sequence[tuple[int, float]],
    path: Path,
    title: str,
    *,
    rewinds: Sequence[int] = (),
) -> None:
    """Draw a run's curves into a PNG file, which is written atomically.

    ``rows`` has one row per rollout step, in order; lines go on over steps without a number. ``evaluations`` has
    (rollout steps done, held-out accuracy 0 to 1); 0 steps done is the initial model. ``rewinds`` has the steps done at
    the checkpoints that the run has gone back to.
    """
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    window = smoothing_window(len(rows))
    panels = figure.subplots(2, 3, sharex=True)
    for axes in panels.flat:
        style_axes(axes)
    (reward, accuracy, entropy), (length, probability, age) = panels
    _draw(reward, "Reward", "mean per response", _curve(rows, "reward", BLUE), window)
    _draw_accuracy(accuracy, rows, evaluations, window)
    _draw(entropy, "Entropy", "nats per token", _curve(rows, "entropy", BLUE), window)
    _draw_length(length, rows, window)
    _draw(probability, "Token probability", "mean per token", _curve(rows, "token_probability", BLUE), window)
    _draw_age(age, rows, window)
    for axes in panels.flat:
        for step in rewinds:
            axes.axvline(step, color=GREY, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    last = max([1, len(rows), *(step for step, _ in evaluations)])
    reward.set_xlim(-0.02 * last, 1.02 * last)
    for axes in panels[1]:
        axes.set_xlabel("rollout step", color=GREY)
    _caption(figure, title, len(rows), window, rewinds=len(rewinds))
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file atomically."""
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _curve(rows: Sequence[Mapping[str, float]], name: str, colour: str, *, label: str = "", unit: float = 1.0) -> Curve:
    values = [row.get(name, math.nan) * unit for row in rows]
    return Curve(label=label, colour=colour, values=[v if math.isfinite(v) else math.nan for v in values])


def style_axes(axes: Axes) -> None:
    """Apply this project's style to a panel."""
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FRAME)
    axes.tick_params(color=FRAME, labelcolor=GREY, labelsize=9, labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")


def head_axes(axes: Axes, title: str, unit: str) -> None:
    """Write the title and the unit of a panel."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_ylabel(unit, color=GREY, fontsize=9.5)


def _draw(axes: Axes, title: str, unit: str, curve: Curve, window: int) -> None:
    """Draw a panel with one curve."""
    head_axes(axes, title, unit)
    _draw_curve(axes, curve, window)
    if not curve.recorded:
        _not_recorded(axes)


def _not_recorded(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_yticks([])


def _draw_curve(axes: Axes, curve: Curve, window: int) -> None:
    """Draw the curve faintly and its smoothed version on top; in a short run the curve itself, with dots."""
    if not curve.recorded:
        return
    steps, values = zip(*curve.points(curve.values), strict=True)
    if window > 1:
        axes.plot(steps, values, color=curve.colour, alpha=0.28, linewidth=1.0)
    steps, smoothed = zip(*curve.points(smooth(curve.values, window)), strict=True)
    marker = "o" if window == 1 else ""
    axes.plot(steps, smoothed, color=curve.colour, linewidth=2.2, marker=marker, markersize=4, label=curve.label)


def _draw_accuracy(
    axes: Axes, rows: Sequence[Mapping[str, float]], evaluations: Sequence[tuple[int, float]], window: int
) -> None:
    train = _curve(rows, "accuracy", BLUE, label="training", unit=PERCENT)
    points = sorted((step, PERCENT * value) for step, value in evaluations if math.isfinite(value))
    head_axes(axes, "Accuracy", "% right")
    _draw_curve(axes, train, window)
    if points:
        steps, values = zip(*points, strict=True)
        first_to_last = "→".join(f"{value:.0f}" for value in dict.fromkeys((values[0], values[-1])))
        axes.plot(steps, values, color=RED, linewidth=1.4, linestyle=(0, (4, 2)), zorder=4)
        (dots,) = axes.plot(steps, values, "o", color=RED, markeredgecolor="white", markersize=8, zorder=5)
        dots.set_label(f"held-out {first_to_last} %")
    known = [value for value in [*train.values, *(value for _, value in points)] if math.isfinite(value)]
    if not known:
        return _not_recorded(axes)
    axes.set_ylim(0, max(1.0, 1.08 * max(known)))
    _legend(axes)


def _draw_length(axes: Axes, rows: Sequence[Mapping[str, float]], window: int) -> None:
    """Draw the mean length, and on a second axis the share of truncated responses, which explains its level."""
    length = _curve(rows, "response_length/mean", BLUE, label="mean")
    truncated = _curve(rows, "truncated_share", RED, label="truncated", unit=PERCENT)
    _draw(axes, "Response length", "tokens", length, window)
    if not (length.recorded and truncated.recorded):
        return
    right = axes.twinx()
    for spine in right.spines.values():
        spine.set_visible(False)
    right.tick_params(color=FRAME, labelcolor=RED, labelsize=9)
    right.yaxis.set_major_locator(MaxNLocator(nbins=6))
    right.set_ylabel("% of responses truncated", color=RED, fontsize=9.5, labelpad=6)
    shares = smooth(truncated.values, window)
    (line,) = right.plot(*zip(*truncated.points(shares), strict=True), color=RED, linewidth=1.4, label=truncated.label)
    line.set(linestyle=(0, (2, 1)), marker="o" if window == 1 else "", markersize=4)
    right.set_ylim(0, min(max(2.0, 1.5 * max(filter(math.isfinite, shares))), 105.0))
    _legend(axes, right)


def _draw_age(axes: Axes, rows: Sequence[Mapping[str, float]], window: int) -> None:
    """Draw mean and maximum age; the maximum is not smoothed, since an average of maxima is not a bound."""
    mean = _curve(rows, "policy_age/mean", BLUE, label="mean")
    oldest = _curve(rows, "policy_age/max", GREEN, label="oldest group")
    head_axes(axes, "Policy age", "versions behind the trainer")
    _draw_curve(axes, mean, window)
    if oldest.recorded:
        steps, tops = zip(*oldest.points(oldest.values), strict=True)
        (line,) = axes.step(steps, tops, where="mid", color=GREEN, linewidth=3.5, label=oldest.label)
        line.set(alpha=0.5, zorder=1.5, marker="o" if window == 1 else "", markersize=7)
    if not (mean.recorded or oldest.recorded):
        return _not_recorded(axes)
    top = max(filter(math.isfinite, [1.0, *mean.values, *oldest.values]))
    axes.set_ylim(-0.06 * top, 1.12 * top)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _legend(axes)


def _legend(axes: Axes, *more: Axes) -> None:
    """Draw one legend for axes that share a panel, right of the title, where it hides no curve."""
    parts = [part.get_legend_handles_labels() for part in (axes, *more)]
    axes.legend(
        [handle for handles, _ in parts for handle in handles],
        [label for _, labels in parts for label in labels],
        loc="lower right",
        bbox_to_anchor=(1.02, 0.995),
        ncols=3,
        fontsize=8.5,
        labelcolor=GREY,
        frameon=False,
        handlelength=1.1,
        handletextpad=0.45,
        columnspacing=0.9,
    )


def _caption(figure: Figure, title: str, steps: int, window: int, *, rewinds: int) -> None:
    words = f"{steps:,} rollout step{'' if steps == 1 else 's'}"
    if window > 1:
        words += f"   ·   faint line: each step   ·   bold line: moving average over {window} steps, centred"
    if rewinds:
        words += "   ·   dotted: gone back to a checkpoint"
    figure.text(0.065, 0.965, title, fontsize=15, fontweight="bold", color=INK, va="center", parse_math=False)
    figure.text(0.065, 0.93, words, fontsize=9.5, color=GREY, va="center")
    figure.subplots_adjust(left=0.065, right=0.985, top=0.855, bottom=0.075, wspace=0.37, hspace=0.34)
