"""The paper's Table 1 beside this ladder's, as Markdown and as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scripts.experiments.ablation.ladder import PAPER_BENCHMARK, PAPER_OTHERS
from scripts.experiments.ablation.result import Result, Spread

PERCENT = 100.0
HEADER = "rung | paper | held-out | gain | average | generated | seeds"


def table_text(results: Sequence[Result]) -> str:
    """Markdown: a row per rung, and below it what the columns mean."""
    lines = ["| " + HEADER + " |", "|---|--:|--:|--:|--:|--:|--:|"]
    lines += [f"| {name} | {score} | | | | | |" for name, score in PAPER_OTHERS]
    before: Result | None = None
    for result in results:
        gain = None if before is None else result.gain_over(before)
        average = Spread.of(trial.average for trial in result.trials)
        tokens = Spread.of(trial.generated_tokens / 1e3 for trial in result.trials)
        cells = [
            result.rung.title,
            str(result.rung.paper),
            _points(result.final),
            "" if gain is None else _points(gain, sign=True),
            _points(average),
            f"{tokens.mean:,.0f}",
            str(result.final.count),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        before = result
    return "\n".join([*lines, "", *_legend(results)]) + "\n"


def _legend(results: Sequence[Result]) -> list[str]:
    words = [
        f"paper: % right ({PAPER_BENCHMARK}); held-out: % right at the end of these runs; gain: over the row above, paired "
        "by seed; average: of the held-out measurements during training; generated: thousands of response tokens, those of "
        "filtered groups included. Figures are means over seeds ± their standard deviation.",
    ]
    base = [trial.accuracies[0] for result in results for trial in result.trials if 0 in trial.accuracies]
    if base:
        words.append(f"The base model: {_points(Spread.of(base))} % right, measured {len(base)} times.")
    return words


def table_numbers(results: Sequence[Result]) -> list[dict[str, object]]:
    """For JSON: a row per rung, with every seed's figures; accuracies are 0 to 1."""
    return [
        {
            "rung": result.rung.name,
            "paper_percent": result.rung.paper,
            "final_mean": _finite(result.final.mean),
            "final_deviation": _finite(result.final.deviation),
            "seeds": [
                {
                    "seed": trial.seed,
                    "final": _finite(trial.final),
                    "average": _finite(trial.average),
                    "accuracies": {str(step): accuracy for step, accuracy in sorted(trial.accuracies.items())},
                    "generated_tokens": trial.generated_tokens,
                    "train_seconds": trial.train_seconds,
                }
                for trial in result.trials
            ],
        }
        for result in results
    ]


def _points(spread: Spread, *, sign: bool = False) -> str:
    """Percent, with a spread where there is one."""
    mean = f"{PERCENT * spread.mean:{'+' if sign else ''}.1f}"
    return mean if math.isnan(spread.deviation) else f"{mean} ± {PERCENT * spread.deviation:.1f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
