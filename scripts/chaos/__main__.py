"""Puts faults into runs on the real stack and writes a table of what became of them, as Markdown and JSON.

``python -m scripts.chaos [PATTERN ...]``: a pattern such as ``engine_*/publishing/*`` chooses rows of ``rows.py``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dapo_openrlhf.bench.workload.random_model import build_work
from dapo_openrlhf.bench.workload.workload import Workload
from scripts.chaos.rows import ROWS, SHORT, chosen
from scripts.chaos.trial import Result, try_row

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VOCABULARY = 512


def workload(folder: Path) -> Workload:
    """Build a tiny random model, and prompts of which about every group is kept."""
    work = Workload(folder=folder, prompt_count=512, prompt_tokens=64, max_new_tokens=48, pass_rate=0.875)
    build_work(work, shape=SHAPE, vocabulary=VOCABULARY)
    return work


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| fault | phase | carrier | what happened | exit | s to go on | steps lost | ledger |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        fault, phase, carrier = result.row.split("/")
        went_on = "-" if result.seconds_to_go_on is None else f"{result.seconds_to_go_on:.1f}"
        ledger = "; ".join(result.problems) or f"{result.groups_trained} groups trained, each prompt once"
        codes = ", then ".join(map(str, result.exit_codes))
        cells = (
            fault,
            phase,
            carrier,
            result.happened.replace("|", "\\|"),
            codes,
            went_on,
            str(result.steps_lost),
            ledger,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(patterns: tuple[str, ...], output: Path) -> int:
    """Try the rows one after the other; returns the number of those that failed."""
    rows = [*chosen(patterns)]
    if not rows:
        sys.exit(f"no row matches {' '.join(patterns)}; rows are called {ROWS[0].name}, ..., {ROWS[-1].name}")
    if output.exists():
        sys.exit(f"{output} is there already; name another folder with --output")
    work = workload(output / "work")
    results: list[Result] = []
    for row in rows:
        results.append(try_row(row, work, output / row.name.replace("/", "-")))
        result = results[-1]
        print(f"{len(results)}/{len(rows)} {row.name}: {'passed' if result.passed else 'FAILED'}", flush=True)
        (output / "chaos.md").write_text(table(results))
        (output / "chaos.json").write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
        if result.passed:
            shutil.rmtree(output / row.name.replace("/", "-"))
    print(table(results))
    return sum(not result.passed for result in results)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=("*",), metavar="PATTERN", help="rows by name (default: all)")
    parser.add_argument("--short", action="store_true", help="only the rows that are among the tests")
    parser.add_argument("--output", type=Path, default=Path(".cache/chaos"), help="a folder that is not there yet")
    arguments = parser.parse_args()
    return min(1, run(SHORT if arguments.short else tuple(arguments.patterns), arguments.output.resolve()))


if __name__ == "__main__":
    sys.exit(main())
