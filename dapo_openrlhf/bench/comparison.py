"""Compares arms: a table with a row for each, what its columns mean, and sentences about pairs of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.bench.arm import WARM_UP_STEPS
from dapo_openrlhf.bench.foreign_load import LOADED
from dapo_openrlhf.bench.result import Result
from dapo_openrlhf.bench.utilisation import Peak
from dapo_openrlhf.whole_file import whole_file

ONE_SIDED = 0.3
"""Ratio of the shorter to the longer of generating and training, below which asynchrony can gain little."""


DEFINITIONS = (
    f"Response tokens of the steps after the first {WARM_UP_STEPS} (warm-up), by the wall-clock time of these steps; medians over "
    "repeats, with their range.",
    "generate, train: seconds a step for which engines and trainer were busy, in the mean of the engines and of the ranks; "
    "bound: the longer of the two.",
)
"""What the table's columns mean, for who reads it."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column that is there where an arm has something to say in it."""

    head: str
    of: Callable[[Result], str]


_FURTHER = (
    _Column("tok/s/device", lambda arm: f"{arm.trained_tokens_per_second / arm.devices:,.0f} x {arm.devices}"),
    _Column("accuracy", lambda arm: "" if arm.accuracy is None else f"{arm.accuracy:.1%}"),
    _Column("foreign load", lambda arm: f"{arm.foreign_load:.0%}" if arm.foreign_load >= LOADED else ""),
)


def table(results: Sequence[Result], peak: Peak | None = None) -> str:
    """The comparison as a table of plain text, with the MFU where the devices' peak is known."""
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
    further = [*_FURTHER, *([_Column("MFU", peak.cell)] if peak else [])]
    more = [column for column in further if any(column.of(arm) for arm in results)]
    rows: list[tuple[str, ...]] = [
        (*head, *(column.head for column in more)),
        *((*_cells(arm), *(column.of(arm) or "-" for column in more)) for arm in results),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]))
    return "\n".join(lines)


def _cells(arm: Result) -> tuple[str, ...]:
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


def verdicts(results: Mapping[str, Result]) -> list[str]:
    """Sentences about pairs of arms; keys are ``k0``, ``k1``, ..., ``stock-sync``, ``stock-async``, ..."""
    found = []
    best_stock = max(
        (arm for key, arm in results.items() if key.startswith("stock-async")),
        key=lambda arm: arm.trained_tokens_per_second,
        default=None,
    )
    one, none = results.get("k1"), results.get("k0")
    if one and best_stock:
        ratio = one.trained_tokens_per_second / best_stock.trained_tokens_per_second
        found.append(f"K = 1 trains {ratio:.2f} x the tokens per second of {best_stock.name}")
    stock = results.get("stock-async")
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
    disturbed = [arm for arm in results.values() if arm.foreign_load >= LOADED]
    if disturbed:
        most = max(arm.foreign_load for arm in disturbed)
        found.append(
            f"other programs took up to {most:.0%} of the machine's processor time: these figures are no measure of it; repeat "
            "them on a quiet machine"
        )
    return found


def _who_waits(arm: Result) -> str:
    shorter = min(arm.generate_seconds, arm.train_seconds)
    side = "generating" if arm.generate_seconds > arm.train_seconds else "training"
    if shorter < ONE_SIDED * arm.bound:
        return f"asynchrony helps little here: {side} alone takes {arm.bound / arm.mean_step_seconds:.0%} of a step"
    return f"{side} is the longer side, {arm.bound:.2f} s against {shorter:.2f} s a step"


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw a bar per arm: trained tokens per second, with the range over repeats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.7 * len(results) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = [arm.trained_tokens_per_second for arm in results]
    errors = [
        [rate - arm.trained_tokens_per_second_range[0] for rate, arm in zip(rates, results, strict=True)],
        [arm.trained_tokens_per_second_range[1] - rate for rate, arm in zip(rates, results, strict=True)],
    ]
    colours = ["#0072b2" if arm.name.startswith("this") else "#999999" for arm in results]
    axes.barh([arm.name for arm in results], rates, xerr=errors, color=colours, height=0.6, capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("response tokens trained per second (median of the repeats, range as whisker)")
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format=path.suffix[1:].lower() or "png")
