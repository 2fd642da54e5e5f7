"""The runs of the study: one for each arm and seed, with what other programs took of the machine meanwhile."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.bench.foreign_load import ForeignLoad
from dapo_openrlhf.bench.process_tree import run_tree
from scripts.experiments.ablation.trials import Trial, run_trials
from scripts.experiments.staleness.arms import Arm

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """One arm with one seed."""

    arm: Arm
    trial: Trial

    @property
    def load_file(self) -> Path:
        """Where the share of other programs is noted, once the run is finished."""
        return self.trial.run.path.with_suffix(".load.json")

    @property
    def foreign_load(self) -> float | None:
        """Share of the machine's processor time that other programs took, 0 to 1; None if it was not noted."""
        return float(json.loads(self.load_file.read_text())["foreign_load"]) if self.load_file.is_file() else None


def plan(
    arms: Sequence[Arm], *, seeds: Sequence[int], config_file: Path, output: Path, overrides: Mapping[str, object]
) -> list[StudyRun]:
    """Every arm with every seed, seed by seed. Raises ``ConfigError`` if one cannot be run."""
    runs = [
        StudyRun(
            arm=arm,
            trial=Trial(
                rung=arm.rung,
                seed=seed,
                output=output,
                config_file=config_file,
                overrides={
                    **overrides,
                    **arm.settings,
                    "async.max_staleness": arm.max_staleness,
                    "train.seed": seed,
                    "run.dir": str(output / arm.name),
                    "run.name": f"seed-{seed}",
                },
            ),
        )
        for seed in seeds
        for arm in arms
    ]
    for run in runs:
        run.trial.config()
    return runs


def measure(runs: Sequence[StudyRun], *, say: Callable[[str], None], after_each: Callable[[], None]) -> int:
    """Do what is not finished, one after the other; returns how many failed."""
    failed = 0
    for run in runs:
        if run.trial.finished:
            continue
        load = ForeignLoad()

        def start(arguments: Sequence[str], log: Path, run: StudyRun = run, load: ForeignLoad = load) -> int:
            with load.measured():
                return run_tree([sys.executable, "-m", run.arm.module, *arguments], _environment(), log, None)

        failed += len(run_trials([run.trial], start=start, say=say))
        run.load_file.write_text(json.dumps({"foreign_load": load.share}) + "\n")
        after_each()
    return failed


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
