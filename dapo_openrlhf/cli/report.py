"""The command ``dapo-openrlhf report``: one HTML page about one or several runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_openrlhf.cli.outputs import check_output
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.report.run_folder import run_called
from dapo_openrlhf.whole_file import write_whole

if TYPE_CHECKING:
    from dapo_openrlhf.report.page.past_run import PastRun
    from dapo_openrlhf.report.page.what_if import WhatIf


def add_options(command: argparse.ArgumentParser) -> None:
    """Add all options."""
    command.description = (
        "One HTML page that needs no network: curves, where the time went, ages, filter, waste, responses, evaluations, "
        "what other settings would have made of them (a plan, some seconds a run), and what the settings of several runs differ "
        "in. Runs may be unfinished, resumed or damaged."
    )
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs' folders; latest: runs/latest")
    command.add_argument("--no-plan", dest="plan", action="store_false", help="leave the plans out")
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

    runs = read_runs([run_called(run) for run in options.runs])
    output = options.output or (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    check_output("--output", output)
    for run in runs:
        _refuse_unreadable(run)
    text = page(runs, _what_ifs(runs) if options.plan else ())
    write_whole(output, text)
    print(f"{output}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0


def _refuse_unreadable(run: PastRun) -> None:
    """Say what of a run cannot be read. Raises ``ConfigError`` where nothing can."""
    trouble = "; ".join(run.damage)
    if run.max_staleness is None and not run.rows and not run.evaluations:
        raise ConfigError(f"{run.folder}: nothing of this run can be read: {trouble or 'its event log is empty'}")
    if trouble:
        print(f"note: {run.folder}: {trouble}", file=sys.stderr, flush=True)


def _what_ifs(runs: Sequence[PastRun]) -> list[WhatIf]:
    from dapo_openrlhf.cli.what_if import what_if
    from dapo_openrlhf.plan.processes import Processes

    found = []
    with Processes() as processes:
        for run in runs:
            print(f"planning from {run.folder}; --no-plan leaves this out", file=sys.stderr, flush=True)
            found.append(what_if(run, processes))
    return found
