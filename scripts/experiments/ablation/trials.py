"""Trials of a ladder, one for each rung and seed: started, resumed, or skipped because they are done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config, settings_of
from dapo_openrlhf.pipeline.checkpoint import Checkpoints
from dapo_openrlhf.report.run_folder import RunFolder
from scripts.experiments.ablation.ladder import Rung, switched_off

Start = Callable[[Sequence[str], Path], int]
"""Runs ``dapo-openrlhf`` with these arguments, its output going to this file; returns its exit status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rung with one seed."""

    rung: Rung
    seed: int
    output: Path
    """The ladder's folder."""
    config_file: Path
    overrides: Mapping[str, object]
    """Dotted settings of this trial, on top of the file."""

    @property
    def run(self) -> RunFolder:
        """``<output>/<rung>/seed-<seed>``, which may not exist yet."""
        return RunFolder(path=self.output / self.rung.name / f"seed-{self.seed}")

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.run.path.with_suffix(".log")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.run.summary.is_file()

    @property
    def resumable(self) -> bool:
        """Whether the run left a checkpoint."""
        return bool(Checkpoints(self.run.checkpoints, max_num=1).finished())

    def config(self) -> Config:
        """All settings. Raises :class:`ConfigError`."""
        return load_config(self.config_file, self.overrides)

    def arguments(self) -> list[str]:
        """Of ``dapo-openrlhf``, to begin the run or to go on with it."""
        if self.resumable:
            return ["train", "--resume", str(self.run.path)]
        words = ["train", "--config", str(self.config_file)]
        for key, value in self.overrides.items():
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{key}", *map(_typed, values)]
        return words


def plan_trials(
    *,
    rungs: Sequence[Rung],
    seeds: Sequence[int],
    config_file: Path,
    output: Path,
    overrides: Mapping[str, object],
) -> list[Trial]:
    """Every rung with every seed, seed by seed, so that an interrupted ladder has whole seeds.

    ``overrides`` are settings for all trials. Raises :class:`ConfigError` if one cannot be run, or was begun with other
    settings.
    """
    last = load_config(config_file, overrides)
    trials = [
        Trial(
            rung=rung,
            seed=seed,
            output=output,
            config_file=config_file,
            overrides={
                **overrides,
                **switched_off(rung, last),
                "train.seed": seed,
                "run.dir": str(output / rung.name),
                "run.name": f"seed-{seed}",
            },
        )
        for seed in seeds
        for rung in rungs
    ]
    for trial in trials:
        _check_settings(trial)
    return trials


def run_trials(trials: Iterable[Trial], *, start: Start, say: Callable[[str], None]) -> list[Trial]:
    """Run what is not finished, one after the other; returns the trials that failed, which do not stop the others."""
    failed = []
    for trial in trials:
        title = f"{trial.rung.name}, seed {trial.seed}"
        if trial.finished:
            say(f"{title}: finished before")
            continue
        if not trial.resumable and trial.run.path.exists():
            shutil.rmtree(trial.run.path)  # an unfinished run of ours: the settings in it were checked
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        say(f"{title}: {'resuming' if trial.resumable else 'training'}, see {trial.log}")
        status = start(trial.arguments(), trial.log)
        if status or not trial.finished:
            failed.append(trial)
            say(f"{title}: FAILED with exit status {status}, see {trial.log}")
    return failed


def when_stopped(trials: Sequence[Trial]) -> str:
    """What is kept of a ladder that is stopped, and how to go on."""
    resumable = sum(trial.resumable and not trial.finished for trial in trials)
    return (
        f"{sum(trial.finished for trial in trials)} of {len(trials)} trials are finished, and {resumable} can go on from a "
        "checkpoint; to go on: the same command"
    )


def _check_settings(trial: Trial) -> None:
    """Raises :class:`ConfigError` if what lies in the trial's folder is not a run with its settings."""
    wanted = trial.config()
    if not trial.run.path.exists():
        return
    if not trial.run.config.is_file():
        raise ConfigError(f"--output {trial.output}: {trial.run.path} is no run of a ladder; choose another folder")
    theirs, ours = _flat(load_config(trial.run.config)), _flat(wanted)
    other = [f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if theirs[key] != ours[key]]
    if other:
        raise ConfigError(
            f"--output {trial.output}: {trial.run.path} was begun with other settings ({', '.join(other)}); choose "
            "another folder, or remove that one"
        )


def _flat(config: Config) -> dict[str, object]:
    """Settings by dotted name, but for where the run's files go."""
    nested = config.model_dump(mode="json", by_alias=True)
    flat: dict[str, object] = {}
    for name, _ in settings_of():
        value: object = nested
        for part in name.split("."):
            assert isinstance(value, dict)
            value = value[part]
        flat[name] = value
    return {name: value for name, value in flat.items() if not name.startswith("run.")}


def _typed(value: object) -> str:
    """A value as the command line takes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return str(value)
