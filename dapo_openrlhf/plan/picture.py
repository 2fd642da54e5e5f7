"""Draws a plan: throughput over policy age (matplotlib, so import this module late)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dapo_openrlhf.plan.splits import Advice, Candidate, pareto
from dapo_openrlhf.whole_file import whole_file


def draw(candidates: Sequence[Candidate], advice: Advice, path: Path) -> None:
    """Write a picture with every candidate, the Pareto set as a line, and the chosen one marked."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        [one.prediction.mean_age for one in candidates], [one.per_device for one in candidates], "o", color="0.7",
        label="split at one K",
    )  # fmt: skip
    front = pareto(candidates)
    axes.plot([one.prediction.mean_age for one in front], [one.per_device for one in front], "-o", label="Pareto set")
    chosen = advice.chosen
    axes.annotate(
        f"K = {chosen.prediction.max_staleness}, {chosen.split}",
        (chosen.prediction.mean_age, chosen.per_device),
        xytext=(8, -14),
        textcoords="offset points",
    )
    axes.plot([chosen.prediction.mean_age], [chosen.per_device], "*", markersize=16, color="C1", label="recommended")
    axes.set(xlabel="mean policy age of trained groups", ylabel="trained tokens per second and device", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:].lower() or "png", dpi=120)
