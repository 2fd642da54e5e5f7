"""Measure what staleness costs on a small task, and print the table.

    python -m scripts.experiments.staleness [--config FILE] [--seeds 1 2 3] [--arms NAME ...] [--output DIR]

K = 0, 1, 2, 4, 8; at K = 4 also without the correction and with it as a mask, and with late groups cut, or dropped by age.
One training for each arm and seed, one after the other and seed by seed; what is finished is not run again. Further
`--section.key VALUE` go to all of them. The folder then holds the runs, `results.jsonl` (a line per run, written after each),
`table.md` and `accuracy.png`. A run that ends in an error is counted and does not stop the others. Times are of any use
only from a machine that does nothing else: the table says how much of it other programs took.
"""

import argparse
import sys
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import parse_overrides
from dapo_openrlhf.whole_file import write_whole
from scripts.experiments.ablation.trials import when_stopped
from scripts.experiments.command import command
from scripts.experiments.staleness.arms import ARMS, choose_arms
from scripts.experiments.staleness.outcome import Outcome, read_outcomes, write_outcomes
from scripts.experiments.staleness.runs import measure, plan
from scripts.experiments.staleness.table import table_text

STUDY = {"train.max_steps": 30, "eval.steps": 5}
"""On top of the configuration."""


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.staleness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = " ".join(arm.name for arm in ARMS)
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("configs/quickstart_cpu.yaml"),
        metavar="FILE",
        help="what all have in common",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/staleness"), metavar="DIR", help="runs/staleness")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    parser.add_argument("--arms", nargs="+", default=[], metavar="NAME", help=f"default: {names}")
    parser.add_argument(
        "--report-only", type=Path, metavar="FILE", help="table and figure of such a results.jsonl; run nothing"
    )
    return parser.parse_known_args()


def run() -> int:
    options, rest = parse_arguments()
    if options.report_only is not None:
        return report(read_outcomes(options.report_only), options.output)
    try:
        arms = choose_arms(options.arms)
        overrides = {**STUDY, **parse_overrides(rest)}
        runs = plan(arms, seeds=options.seeds, config_file=options.config, output=options.output, overrides=overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    results = options.output / "results.jsonl"
    with stopping.telling(lambda: when_stopped([run.trial for run in runs])):
        failed = measure(runs, say=Voice(sys.stdout), after_each=lambda: write_outcomes(results, runs))
    return max(report(write_outcomes(results, runs), options.output), 1 if failed else 0)


def report(outcomes: list[Outcome], folder: Path) -> int:
    """Write and print the table, and draw the figure. Returns 1 if nothing is finished."""
    if not outcomes:
        print("no run is finished", file=sys.stderr)
        return 1
    from scripts.experiments.staleness.figure import draw

    table = table_text(outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "table.md", table)
    draw(outcomes, folder / "accuracy.png")
    print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(command(run))
