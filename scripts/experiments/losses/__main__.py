"""Compare losses and corrections under stale rollouts, and print the table.

    python -m scripts.experiments.losses --config configs/ablation_cpu.yaml [--ages 1 4 8] [--seeds 1 2 3] [--arms NAME ...]

One `dapo-openrlhf train` for each arm, age and seed, one after the other; what is finished is not run again, what has a
checkpoint (ckpt.save_steps) goes on from it. Further `--section.key VALUE` go to all of them. The folder then holds the
runs and `table.md`. A run that ends in an error is counted and does not stop the others.
"""

import argparse
import sys
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import parse_overrides
from dapo_openrlhf.whole_file import write_whole
from scripts.experiments.ablation.__main__ import start
from scripts.experiments.ablation.trials import Trial, run_trials, when_stopped
from scripts.experiments.command import command
from scripts.experiments.losses.arms import ARMS, Arm, choose_arms, table_text


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = " ".join(arm.name for arm in ARMS)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="what all have in common")
    parser.add_argument("--output", type=Path, default=Path("runs/losses"), metavar="DIR", help="runs/losses")
    parser.add_argument("--ages", type=int, nargs="+", default=[1, 4, 8], metavar="K", help="default: 1 4 8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    parser.add_argument("--arms", nargs="+", default=[], metavar="NAME", help=f"default: {names}")
    parser.add_argument("--report-only", action="store_true", help="print the table of what is finished, run nothing")
    return parser.parse_known_args()


def plan(options: argparse.Namespace, arms: tuple[Arm, ...], rest: list[str]) -> list[Trial]:
    """Every arm at every age, seed by seed. Raises :class:`ConfigError` if one cannot be run."""
    overrides = parse_overrides(rest)
    trials = [
        Trial(
            rung=rung,
            seed=seed,
            output=options.output,
            config_file=options.config,
            overrides={
                **arm.settings,
                **overrides,
                "async.max_staleness": age,
                "train.seed": seed,
                "run.dir": str(options.output / rung.name),
                "run.name": f"seed-{seed}",
            },
        )
        for seed in options.seeds
        for age in options.ages
        for arm in arms
        for rung in [arm.at_age(age)]
    ]
    for trial in trials:
        trial.config()
    return trials


def run() -> int:
    options, rest = parse_arguments()
    try:
        arms = choose_arms(options.arms)
        trials = plan(options, arms, rest)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    with stopping.telling(lambda: when_stopped(trials)):
        failed = [] if options.report_only else run_trials(trials, start=start, say=Voice(sys.stdout))
    table = table_text(trials, arms, options.ages)
    write_whole(options.output / "table.md", table)
    print(f"\n{table}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(command(run))
