"""The study's figure: accuracy over steps, over tokens and over time, and the arms at one K (matplotlib: import late)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dapo_openrlhf.report.picture import GREY, head_axes, save_figure, style_axes
from scripts.experiments.ablation.figures import over_seeds
from scripts.experiments.staleness.arms import ARMS, STUDIED, SWEEP, Arm
from scripts.experiments.staleness.outcome import Outcome

DOTS_PER_INCH = 85
PANEL_INCHES = (5.2, 3.6)
PERCENT = 100.0
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#6B6B6B")
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes: a curve for each arm, averaged over seeds."""

    title: str
    arms: Sequence[Arm]
    axis: str
    label: str
    unit: float = 1.0


AT_ONE_K = tuple(arm for arm in ARMS if arm.max_staleness == STUDIED)
PANELS = (
    Panel(title="By steps", arms=SWEEP, axis="step", label="rollout step"),
    Panel(title="By tokens", arms=SWEEP, axis="tokens", label="thousands of response tokens generated", unit=1e-3),
    Panel(title="By time", arms=SWEEP, axis="seconds", label="seconds of training"),
    Panel(title=f"Ways at K = {STUDIED}", arms=AT_ONE_K, axis="step", label="rollout step"),
)


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw all panels into a PNG file."""
    width, height = PANEL_INCHES
    figure = Figure(figsize=(2 * width, 2 * height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        style_axes(axes)
        _draw(axes, panel, outcomes)
    save_figure(figure, path)


def _draw(axes: Axes, panel: Panel, outcomes: Sequence[Outcome]) -> None:
    head_axes(axes, panel.title, "% right, held-out")
    axes.set_xlabel(panel.label, color=GREY, fontsize=9.5)
    for arm, colour in zip(panel.arms, COLOURS, strict=False):
        curves = [
            [(panel.unit * float(getattr(point, panel.axis)), PERCENT * point.accuracy) for point in outcome.points]
            for outcome in outcomes
            if outcome.arm == arm.name
        ]
        if not curves:
            continue
        x, mean, low, high = zip(*over_seeds(curves), strict=True)
        axes.plot(x, mean, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=arm.title)
        if len(curves) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    if axes.lines:
        axes.legend(fontsize=8, labelcolor=GREY, frameon=False, loc="best")
