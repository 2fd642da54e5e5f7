"""What a comparison comes to: a row per arm, and what the rows say about each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dapo_openrlhf.bench.arms import ArmRun

ONE_SIDED = 0.3
"""Where the shorter of generating and training is below this share of the longer, asynchrony can gain little."""


@dataclass(frozen=True, kw_only=True)
class ArmFigures:
    """All repeats of one arm: medians, with the range over repeats where it matters."""

    name: str
    runs: int
    trained_tokens_per_second: float
    trained_tokens_per_second_range: tuple[float, float]
    step_seconds: float
    """Median over all counted steps of all repeats."""
    step_seconds_range: tuple[float, float]
    """Quartiles over these steps."""
    mean_step_seconds: float
    engine_idle: float
    """Share of the time, 0 to 1."""
    trainer_idle: float
    mean_age: float | None
    max_age: int | None
    generate_seconds: float
    train_seconds: float
    busier_seconds: float
    """Mean over steps of the longer of generating and training in each."""
    publish_seconds: float
    pass_rate: float

    @property
    def bound(self) -> float:
        """max(generate, train): what a step cannot be shorter than with these two workers."""
        return max(self.generate_seconds, self.train_seconds)

    @property
    def closeness(self) -> float:
        """The bound over the mean step, 1 at best."""
        return self.bound / self.mean_step_seconds

    def as_dict(self) -> dict[str, object]:
        """Every figure of the table by name."""
        return asdict(self) | {"bound_seconds": self.bound, "bound_over_step": self.closeness}


def summarise(name: str, runs: Sequence[ArmRun]) -> ArmFigures:
    """Medians over an arm's repeats."""
    rates = [run.trained_tokens / run.seconds for run in runs]
    steps = sorted(seconds for run in runs for seconds in run.step_seconds)
    means = [run.seconds / len(run.step_seconds) for run in runs]
    generate, train, busier = (
        statistics.median(getattr(run, name) for run in runs)
        for name in ("generate_seconds", "train_seconds", "busier_seconds")
    )
    ages = [run.mean_age for run in runs if run.mean_age is not None]
    quartiles = statistics.quantiles(steps, n=4)
    mean_step = statistics.median(means)
    return ArmFigures(
        name=name,
        runs=len(runs),
        trained_tokens_per_second=statistics.median(rates),
        trained_tokens_per_second_range=(min(rates), max(rates)),
        step_seconds=statistics.median(steps),
        step_seconds_range=(quartiles[0], quartiles[2]),
        mean_step_seconds=mean_step,
        engine_idle=max(0.0, 1 - generate / mean_step),
        trainer_idle=max(0.0, 1 - train / mean_step),
        mean_age=statistics.median(ages) if ages else None,
        max_age=max((run.max_age for run in runs if run.max_age is not None), default=None),
        generate_seconds=generate,
        train_seconds=train,
        busier_seconds=busier,
        publish_seconds=statistics.median(run.publish_seconds for run in runs),
        pass_rate=statistics.median(run.pass_rate for run in runs),
    )


def table(figures: Sequence[ArmFigures]) -> str:
    """The comparison as text."""
    head = (
        "arm",
        "trained tok/s",
        "(range)",
        "step s",
        "(quartiles)",
        "generate s",
        "train s",
        "bound s",
        "bound/step",
        "engine idle",
        "trainer idle",
        "age mean/max",
        "publish s",
        "pass rate",
    )
    rows = [head, *(_cells(arm) for arm in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))  # noqa: B905
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def _cells(arm: ArmFigures) -> tuple[str, ...]:
    low, high = arm.trained_tokens_per_second_range
    first, third = arm.step_seconds_range
    return (
        arm.name,
        f"{arm.trained_tokens_per_second:,.0f}",
        f"{low:,.0f}-{high:,.0f}",
        f"{arm.mean_step_seconds:.2f}",
        f"{first:.2f}-{third:.2f}",
        f"{arm.generate_seconds:.2f}",
        f"{arm.train_seconds:.2f}",
        f"{arm.bound:.2f}",
        f"{arm.closeness:.0%}",
        f"{arm.engine_idle:.0%}",
        f"{arm.trainer_idle:.0%}",
        "-" if arm.mean_age is None else f"{arm.mean_age:.2f}/{arm.max_age}",
        f"{arm.publish_seconds:.3f}",
        f"{arm.pass_rate:.0%}",
    )


def verdicts(figures: Mapping[str, ArmFigures]) -> list[str]:
    """Sentences about pairs of arms; keys are ``k0``, ``k1``, ..., ``stock-sync``, ``stock-async``, ..."""
    found = []
    best_stock = max(
        (arm for key, arm in figures.items() if key.startswith("stock-async")),
        key=lambda arm: arm.trained_tokens_per_second,
        default=None,
    )
    one, none = figures.get("k1"), figures.get("k0")
    if one and best_stock:
        ratio = one.trained_tokens_per_second / best_stock.trained_tokens_per_second
        found.append(f"K = 1 trains {ratio:.2f} x the tokens per second of {best_stock.name}")
    stock = figures.get("stock-async")
    if one and stock:
        found.append(
            f"one publication takes {one.publish_seconds / stock.publish_seconds:.1%} of {stock.name}'s broadcast"
        )
    if one and none:
        found.append(f"K = 1 against K = 0: {one.trained_tokens_per_second / none.trained_tokens_per_second:.2f} x")
    if one:
        found.append(
            f"a K = 1 step takes {1 / one.closeness - 1:.1%} longer than max(generate, train), and "
            f"{one.mean_step_seconds / one.busier_seconds - 1:.1%} longer than whichever took longer in each step: the "
            "difference is that batches differ"
        )
        found.append(_who_waits(one))
    return found


def _who_waits(arm: ArmFigures) -> str:
    shorter = min(arm.generate_seconds, arm.train_seconds)
    side = "generating" if arm.generate_seconds > arm.train_seconds else "training"
    if shorter < ONE_SIDED * arm.bound:
        return f"asynchrony helps little here: {side} alone takes {arm.bound / arm.mean_step_seconds:.0%} of a step"
    return f"{side} is the longer side, {arm.bound:.2f} s against {shorter:.2f} s a step"


def draw(figures: Sequence[ArmFigures], path: Path) -> None:
    """A bar per arm: trained tokens per second with the range over repeats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.7 * len(figures) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = [arm.trained_tokens_per_second for arm in figures]
    errors = [
        [rate - arm.trained_tokens_per_second_range[0] for rate, arm in zip(rates, figures, strict=True)],
        [arm.trained_tokens_per_second_range[1] - rate for rate, arm in zip(rates, figures, strict=True)],
    ]
    colours = ["#0072b2" if arm.name.startswith("this") else "#999999" for arm in figures]
    axes.barh([arm.name for arm in figures], rates, xerr=errors, color=colours, height=0.6, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("response tokens trained per second (median of the repeats, range as whisker)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
