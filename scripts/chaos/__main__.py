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
from scripts.chaos.page import page, table, this_machine
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


def run(patterns: tuple[str, ...], output: Path) -> list[Result]:
    """Try the rows one after the other; returns the results of these and of the rows that the folder had already.

    A row that has passed there is not tried again.
    """
    rows = [*chosen(patterns)]
    if not rows:
        sys.exit(f"no row matches {' '.join(patterns)}; rows are called {ROWS[0].name}, ..., {ROWS[-1].name}")
    results = tried(output)
    left = [row for row in rows if row.name not in results or not results[row.name].passed]
    if not left:
        return [*results.values()]
    work = workload(output / "work")
    keep([*results.values()], output)  # a call that ends within its first row is gone on with as well
    for number, row in enumerate(left, 1):
        folder = output / row.name.replace("/", "-")
        shutil.rmtree(folder, ignore_errors=True)
        result = results[row.name] = try_row(row, work, folder)
        print(f"{number}/{len(left)} {row.name}: {'passed' if result.passed else 'FAILED'}", flush=True)
        keep([*results.values()], output)
        if result.passed:
            shutil.rmtree(folder)
    return [*results.values()]


def keep(results: Sequence[Result], output: Path) -> None:
    """Write results into a folder, for :func:`tried` and for people."""
    (output / "chaos.md").write_text(table(results))
    (output / "chaos.json").write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")


def tried(output: Path) -> dict[str, Result]:
    """The results that a folder has, by row."""
    if not (output / "chaos.json").exists():
        if output.exists():
            sys.exit(f"{output} is there already, without a table of this command; name another folder with --output")
        return {}
    found = [Result(**row) for row in json.loads((output / "chaos.json").read_text())]
    return {result.row: result for result in found}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=("*",), metavar="PATTERN", help="rows by name (default: all)")
    parser.add_argument("--short", action="store_true", help="only the rows that are among the tests")
    parser.add_argument(
        "--output", type=Path, default=Path(".cache/chaos"), help="a new folder, or that of an earlier call, to go on"
    )
    parser.add_argument("--page", type=Path, help="write the page of the documentation, too")
    parser.add_argument("--machine", default=this_machine(), help="what the page says of the machine")
    arguments = parser.parse_args()
    results = run(SHORT if arguments.short else tuple(arguments.patterns), arguments.output.resolve())
    print(table(results))
    if arguments.page:
        arguments.page.write_text(page(results, machine=arguments.machine))
    return int(not all(result.passed for result in results))


if __name__ == "__main__":
    sys.exit(main())
