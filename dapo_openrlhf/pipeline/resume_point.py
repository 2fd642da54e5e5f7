"""Finds where a run resumes: its newest checkpoint whose files are as they were written (standard library)."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError, SettingsUnreadable
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.checkpoint import SETTINGS_FILE, Checkpoints
from dapo_openrlhf.pipeline.resume import Change, check_resume

SETTINGS = "config.yaml"
"""Name of the file in a run's folder that has its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a run resumes."""

    run: Path
    """The run's folder."""
    checkpoint: Path
    """An undamaged checkpoint in that folder."""
    changes: tuple[Change, ...] = ()
    """Settings that are other than at the checkpoint, once they were compared."""
    seen: tuple[Path, ...] = field(default=(), compare=False)
    """All checkpoints that the run had when it was looked at; to verify them may take minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    """A run that begins anew in its folder, as there is nothing in it to go on from."""

    run: Path
    """The run's folder."""


def newest_point(run: Path, say: Callable[[str], None]) -> ResumePoint:
    """A run's newest good checkpoint. Raises :class:`ConfigError` if there is none.

    ``say`` gets a message about newer ones that are damaged.
    """
    checkpoints = Checkpoints(run / "checkpoints", max_num=1)
    seen = tuple(checkpoints.finished())
    good = checkpoints.newest_good(say)
    if good is None:
        if not run.is_dir():
            raise ConfigError(f"--resume {run}: there is no such folder")
        found = checkpoints.finished()
        why = (
            f"all {len(found)} checkpoints in it are damaged"
            if found
            else "there is no checkpoint in it; ckpt.save_steps makes some"
        )
        raise ConfigError(f"--resume {run}: {why}")
    return ResumePoint(run=run, checkpoint=good, seen=seen)


def still_newest(point: ResumePoint, config: Config, say: Callable[[str], None]) -> ResumePoint:
    """The point at which to resume a run that is locked now, and may have been written until then.

    Raises :class:`ConfigError` as :func:`newest_point` and ``check_resume`` do.
    """
    if tuple(Checkpoints(point.run / "checkpoints", max_num=1).finished()) == point.seen:
        return point
    newest = newest_point(point.run, say)
    return replace(newest, changes=tuple(check_resume(config, run=newest.run, checkpoint=newest.checkpoint)))


def point_of_name(parent: Path, name: str, say: Callable[[str], None]) -> ResumePoint | None:
    """The newest good checkpoint of the last of the runs ``name``, ``name-2``, ... in a folder; None if none has one.

    ``say`` gets a message about damaged ones.
    """
    for run in _of_name(parent, name):
        checkpoints = Checkpoints(run / "checkpoints", max_num=1)
        seen = tuple(checkpoints.finished())
        if (good := checkpoints.newest_good(say)) is not None:
            return ResumePoint(run=run, checkpoint=good, seen=seen)
    return None


def nothing_kept(parent: Path, name: str) -> Path | None:
    """The last of the runs ``name``, ``name-2``, ... if it kept no checkpoint and no result and may be written to; else None."""
    run = next(iter(_of_name(parent, name)), None)
    if run is None or not (run / SETTINGS).is_file() or not os.access(run, os.W_OK):
        return None
    kept = [run / "summary.json", run / "checkpoint", *Checkpoints(run / "checkpoints", max_num=1).finished()]
    return None if any(path.exists() for path in kept) else run


def _of_name(parent: Path, name: str) -> list[Path]:
    """The runs of a name, the last one first."""
    runs = [path for path in parent.glob(f"{glob.escape(name)}*") if _number(path.name, name) is not None]
    return sorted(runs, key=lambda path: _number(path.name, name) or 0, reverse=True)


def _number(folder: str, name: str) -> int | None:
    """The number, from 1, of a folder among the runs of that name; None if it belongs to another run."""
    if folder == name:
        return 1
    rest = folder.removeprefix(f"{name}-")
    return int(rest) if rest != folder and rest.isascii() and rest.isdigit() else None


def settings_file(point: ResumePoint, say: Callable[[str], None]) -> Path:
    """The file with the settings of a run to be resumed: its config.yaml, or its checkpoint's copy.

    The copy is taken, with a message to ``say``, where config.yaml is missing or broken. A config.yaml with an invalid
    setting is refused with ``ConfigError``, since somebody must have edited it.
    """
    file, copy = point.run / SETTINGS, point.checkpoint / SETTINGS_FILE
    try:
        load_config(file)
    except SettingsUnreadable as error:
        if not copy.is_file():
            raise
        say(f"warning: {error}; the settings are taken from {copy}")
        return copy
    return file
