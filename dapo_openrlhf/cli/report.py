"""The command ``dapo-openrlhf report``: one HTML page about one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from dapo_openrlhf.cli.outputs import check_output
from dapo_openrlhf.whole_file import write_whole


def add_options(command: argparse.ArgumentParser) -> None:
    """Add all options."""
    command.description = (
        "One HTML page that needs no network: curves, where the time went, ages, filter, waste, responses, evaluations, "
        "and what the settings of several runs differ in. Runs may be unfinished, resumed or damaged."
    )
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs' folders, such as runs/latest")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run's folder, of several runs in this one",
    )


def report(options: argparse.Namespace) -> int:
    """Write the page; returns the exit status. Raises ``ConfigError`` for a folder that is no run's."""
    from dapo_openrlhf.report.page.page import page
    from dapo_openrlhf.report.page.past_run import read_runs

    check_output("--output", options.output)
    runs = read_runs(options.runs)
    output = options.output or (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    text = page(runs)
    write_whole(output, text)
    print(f"{output}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0
