"""Everything a ladder leaves in its folder: table, figures, samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dapo_openrlhf.report.reflection import PhraseCounter, read_kept_responses, samples_text
from dapo_openrlhf.whole_file import write_whole
from scripts.experiments.ablation.result import read_ladder
from scripts.experiments.ablation.table import table_numbers, table_text
from scripts.experiments.ablation.trials import Trial


def write_report(trials: Sequence[Trial], folder: Path, *, counter: PhraseCounter) -> str | None:
    """Write ``table.md``, ``table.json``, ``samples.md`` and the figures from what is finished; returns the table.

    None, and nothing written, if no trial is finished.
    """
    from scripts.experiments.ablation.figures import draw_figures

    results = read_ladder(trials)
    if not results:
        return None
    table = table_text(results)
    write_whole(folder / "table.md", table)
    write_whole(folder / "table.json", json.dumps(table_numbers(results), indent=2, allow_nan=False) + "\n")
    write_whole(folder / "samples.md", _samples(trials, counter))
    draw_figures(results, folder)
    return table


def _samples(trials: Sequence[Trial], counter: PhraseCounter) -> str:
    """Of the first finished seed of every rung."""
    sections = ["# Sample responses, and reflective phrases among all responses of each evaluation\n"]
    shown = set()
    for trial in trials:
        if trial.finished and trial.rung not in shown:
            shown.add(trial.rung)
            title = f"{trial.rung.title} (seed {trial.seed})"
            sections.append(samples_text(title, read_kept_responses(trial.run.path / "eval"), counter))
    return "\n".join(sections)
