"""Measure runs at several K on this machine, and predict each from the logs of K = 0 and K = 1.

    python -m scripts.experiments.plan_validation [--output DIR] [--steps N] [--repeats N] [--report-only]

Two kinds of work: lengths with a heavy tail, and even ones. Runs are interleaved; each is kept with the machine's load, and
what is finished is not run again. The table is printed and written to `table.md` in the folder. It exits with 1 if a
prediction is off by more than 10 % of the step or 0.1 of the mean age.
"""

import argparse
import sys
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.bench.arm import ArmError
from scripts.experiments.plan_validation.comparison import rows, table
from scripts.experiments.plan_validation.runs import RECIPES, measure, trials


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.plan_validation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("runs/plan_validation"), metavar="DIR")
    parser.add_argument("--works", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), help="kinds of work")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4], metavar="K")
    parser.add_argument("--steps", type=int, default=24, metavar="N", help="rollout steps of each run (24)")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="runs of each kind (2)")
    parser.add_argument("--report-only", action="store_true", help="compare what is finished, run nothing")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    every = trials(options.output, works=options.works, staleness=options.staleness, repeats=options.repeats)
    try:
        with stopping.handled():
            for trial in () if options.report_only else every:
                measure(trial, steps=options.steps, cache=options.output / "cache", say=print)
    except ArmError as error:
        print(error, file=sys.stderr)
        return 1
    except stopping.Stopped as stopped:
        stopped.say()
        return stopped.status
    found = list(rows(every))
    if not found:
        print(f"no run in {options.output} is finished", file=sys.stderr)
        return 1
    print(table(found))
    (options.output / "table.md").write_text(table(found) + "\n")
    return 0 if all(row.within for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
