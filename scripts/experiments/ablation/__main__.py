"""Run the paper's ladder (Table 1): naive GRPO, and on each rung one technique more; then print the table.

    python -m scripts.experiments.ablation --config configs/ablation_cpu.yaml [--seeds 1 2 3] [--rungs NAME ...] [--steps N]

The configuration is the last rung, with every technique on, of any size. One `dapo-openrlhf train` for each rung and
seed, one after the other; what is finished is not run again, what has a checkpoint (ckpt.save_steps) goes on from it.
Further `--section.key VALUE` go to all of them. The folder then holds the runs, `table.md`, `table.json`, the figures,
and `samples.md` with responses over training and the reflective phrases in them.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.bench.process_tree import run_tree
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import parse_overrides
from dapo_openrlhf.report.reflection import PHRASES, PhraseCounter
from scripts.experiments.ablation.ladder import RUNGS, choose_rungs
from scripts.experiments.ablation.report import write_report
from scripts.experiments.ablation.trials import plan_trials, run_trials, when_stopped
from scripts.experiments.command import command

ROOT = Path(__file__).resolve().parents[3]


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the last rung")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), metavar="DIR", help="runs/ablation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    parser.add_argument(
        "--rungs", nargs="+", default=[], metavar="NAME", help="default: " + " ".join(rung.name for rung in RUNGS)
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="rollout steps of each run; default: the configuration's"
    )
    parser.add_argument("--phrases", nargs="+", default=PHRASES, metavar="TEXT", help="what counts as reflective")
    parser.add_argument("--report-only", action="store_true", help="write the report of what is finished, run nothing")
    return parser.parse_known_args()


def start(arguments: Sequence[str], log: Path) -> int:
    """`dapo-openrlhf` of this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return run_tree([sys.executable, "-m", "dapo_openrlhf", *arguments], environment, log, None)


def run() -> int:
    options, rest = parse_arguments()
    try:
        overrides = parse_overrides(rest)
        trials = plan_trials(
            rungs=choose_rungs(options.rungs),
            seeds=options.seeds,
            config_file=options.config,
            output=options.output,
            overrides=overrides if options.steps is None else {**overrides, "train.max_steps": options.steps},
        )
        counter = PhraseCounter(options.phrases)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    with stopping.telling(lambda: when_stopped(trials)):
        failed = [] if options.report_only else run_trials(trials, start=start, say=Voice(sys.stdout))
    table = write_report(trials, options.output, counter=counter)
    print(f"\n{table}\n{options.output}: table, figures, samples" if table else "no trial is finished")
    return 1 if failed or table is None else 0


if __name__ == "__main__":
    sys.exit(command(run))
