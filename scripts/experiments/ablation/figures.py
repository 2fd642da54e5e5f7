"""The paper's figures, drawn from a ladder's results (matplotlib: import this module late)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dapo_openrlhf.report.picture import GREY, PERCENT, head_axes, save_figure, smooth, smoothing_window, style_axes
from scripts.experiments.ablation.ladder import (
    CLIP_HIGHER,
    DYNAMIC_SAMPLING,
    NAIVE,
    OVERLONG_FILTERING,
    RUNGS,
    SOFT_PUNISHMENT,
    TOKEN_LEVEL_LOSS,
    Rung,
)
from scripts.experiments.ablation.measurement import Measurement, Points
from scripts.experiments.ablation.result import Result

DOTS_PER_INCH = 85
PANEL_INCHES = (5.2, 3.6)

COLOURS = {
    NAIVE: "#6B6B6B",
    OVERLONG_FILTERING: "#56B4E9",
    CLIP_HIGHER: "#0072B2",
    SOFT_PUNISHMENT: "#CC79A7",
    TOKEN_LEVEL_LOSS: "#E69F00",
    DYNAMIC_SAMPLING: "#D55E00",
}
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes: a curve for each rung, averaged over seeds."""

    title: str
    unit: str
    points: Callable[[Measurement], Points]
    rungs: Sequence[Rung] = RUNGS
    scale: float = 1.0
    """From the metric's unit to the drawn one."""
    measured: bool = False
    """Few exact points, drawn with dots; otherwise a metric of every step, drawn smoothed."""
    x: str = "rollout step"
    x_scale: float = 1.0


def _accuracy(trial: Measurement) -> Points:
    return [(float(step), accuracy) for step, accuracy in sorted(trial.accuracies.items())]


def _all_right(trial: Measurement) -> Points:
    return [(float(step), share) for step, share in sorted(trial.all_right.items())]


def _metric(name: str) -> Callable[[Measurement], Points]:
    return lambda trial: trial.curve(name)


def _held_out(rungs: Sequence[Rung] = RUNGS) -> Panel:
    return Panel(title="Held-out accuracy", unit="% right", points=_accuracy, rungs=rungs, scale=PERCENT, measured=True)


def _of_metric(title: str, unit: str, name: str, rungs: Sequence[Rung]) -> Panel:
    return Panel(title=title, unit=unit, points=_metric(name), rungs=rungs)


AROUND_LENGTH = (NAIVE, OVERLONG_FILTERING, CLIP_HIGHER, SOFT_PUNISHMENT)
AROUND_CLIP_HIGHER = (OVERLONG_FILTERING, CLIP_HIGHER)
AROUND_LOSS = (SOFT_PUNISHMENT, TOKEN_LEVEL_LOSS)
AROUND_SAMPLING = (TOKEN_LEVEL_LOSS, DYNAMIC_SAMPLING)
ENDS = (NAIVE, DYNAMIC_SAMPLING)

FIGURES: dict[str, tuple[Panel, ...]] = {
    "accuracy": (_held_out(),),
    "overlong": (
        _held_out(AROUND_LENGTH),
        _of_metric("Response length", "tokens", "response_length/mean", AROUND_LENGTH),
    ),
    "clip_higher": (
        _held_out(AROUND_CLIP_HIGHER),
        _of_metric("Entropy", "nats per token", "entropy", AROUND_CLIP_HIGHER),
    ),
    "all_right": (
        Panel(
            title="Prompts with every answer right",
            unit="% of the judged groups",
            points=_all_right,
            rungs=AROUND_SAMPLING,
            scale=PERCENT,
        ),
    ),
    "dynamic_sampling": (
        _held_out(AROUND_SAMPLING),
        Panel(
            title="The same by what was generated",
            unit="% right",
            points=Measurement.accuracy_by_tokens,
            rungs=AROUND_SAMPLING,
            scale=PERCENT,
            measured=True,
            x="thousands of response tokens generated",
            x_scale=1e-3,
        ),
    ),
    "loss_type": (
        _of_metric("Response length", "tokens", "response_length/mean", AROUND_LOSS),
        _of_metric("Entropy", "nats per token", "entropy", AROUND_LOSS),
    ),
    "monitoring": (
        _of_metric("Response length", "tokens", "response_length/mean", ENDS),
        _of_metric("Reward", "mean per trained response", "reward", ENDS),
        _of_metric("Entropy", "nats per token", "entropy", ENDS),
        _of_metric("Generation probability", "mean per token", "token_probability", ENDS),
    ),
}
"""By the file's name: accuracy over steps, and the paper's figures 5, 2, 3b, 6, 4 and 7."""


def draw_figures(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw every figure that has something to show into ``folder``; returns the PNG files."""
    drawn = []
    for name, panels in FIGURES.items():
        shown = {rung for panel in panels for rung in panel.rungs}
        if any(result.rung in shown for result in results):
            path = folder / f"{name}.png"
            _draw(panels, results, path)
            drawn.append(path)
    return drawn


def over_seeds(curves: Iterable[Points]) -> list[tuple[float, float, float, float]]:
    """(x, mean, lowest, highest) at every x that all curves have; where their x differ, of the i-th points.

    The number of tokens generated after some steps, for one, is another for every seed.
    """
    every = list(curves)
    by_x: defaultdict[float, list[float]] = defaultdict(list)
    for curve in every:
        for x, y in curve:
            by_x[x].append(y)
    shared = {x: ys for x, ys in by_x.items() if len(ys) == len(every)}
    if len(shared) > 1 or len(every) == 1:
        return [(x, statistics.fmean(ys), min(ys), max(ys)) for x, ys in sorted(shared.items())]
    averaged = []
    for column in zip(*every, strict=False):
        xs, ys = zip(*column, strict=True)
        averaged.append((statistics.fmean(xs), statistics.fmean(ys), min(ys), max(ys)))
    return averaged


def _draw(panels: Sequence[Panel], results: Sequence[Result], path: Path) -> None:
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    width, height = PANEL_INCHES
    size = (columns * width + (2.2 if len(panels) == 1 else 0), rows * height)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        style_axes(axes)
        _draw_panel(axes, panel, results)
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(panels) == 1 else {"loc": "best"}
        if axes.lines:
            axes.legend(fontsize=8.5, labelcolor=GREY, frameon=False, **beside)
    save_figure(figure, path)


def _draw_panel(axes: Axes, panel: Panel, results: Sequence[Result]) -> None:
    head_axes(axes, panel.title, panel.unit)
    axes.set_xlabel(panel.x, color=GREY, fontsize=9.5)
    for result in results:
        if result.rung not in panel.rungs:
            continue
        points = over_seeds(panel.points(trial) for trial in result.trials)
        if not points:
            continue
        colour = COLOURS[result.rung]
        x = [panel.x_scale * point[0] for point in points]
        window = 1 if panel.measured else smoothing_window(len(points))
        mean, low, high = (smooth([panel.scale * point[i] for point in points], window) for i in (1, 2, 3))
        marker = "o" if panel.measured else ""
        axes.plot(x, mean, color=colour, linewidth=2.0, marker=marker, markersize=4, label=result.rung.title)
        if len(result.trials) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
