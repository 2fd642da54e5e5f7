"""Decides where training starts: from its configuration, or from a checkpoint of an earlier run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.resume import check_resume
from dapo_openrlhf.pipeline.resume_point import (
    SETTINGS,
    Anew,
    ResumePoint,
    newest_point,
    nothing_kept,
    point_of_name,
    settings_file,
)
from dapo_openrlhf.report.run_lock import is_being_written

AUTO = "auto"
"""The value of ``--resume`` that resumes the run of the configuration's name if there is one."""


def starting_point(
    options: argparse.Namespace, overrides: Mapping[str, Any], *, say: Callable[[str], None]
) -> tuple[Config, ResumePoint | Anew | None]:
    """The configuration, and the checkpoint to resume from or the folder to begin anew in; by ``--config``, ``--resume``, ``--anew``.

    ``say`` gets messages about what was skipped. Raises ``ConfigError`` for options that do not go together, a run
    without a good checkpoint, and settings that the run cannot be resumed with.
    """
    if options.command == "train" and options.anew is not None:
        return _begun_anew(options, overrides)
    match options.config, options.resume:
        case None, None:
            raise ConfigError("--config FILE or --resume RUN is needed")
        case None, str(resume) if resume != AUTO:
            point: ResumePoint | None = newest_point(Path(resume), say)
            assert point is not None
            config = load_config(settings_file(point, say), overrides)
        case Path() as file, resume if resume in (None, AUTO):
            config = load_config(file, overrides)
            point = None if resume is None else point_of_name(Path(config.run.dir), config.run.name, say)
        case None, _:
            raise ConfigError("--resume auto needs --config FILE, whose run.dir and run.name say which run is meant")
        case _:
            raise ConfigError(
                f"--config and --resume {options.resume} do not go together: a resumed run has its own settings, and "
                "--section.key VALUE changes single ones; with --config only --resume auto is taken"
            )
    if point is not None:
        point = replace(point, changes=tuple(check_resume(config, run=point.run, checkpoint=point.checkpoint)))
    elif options.resume == AUTO:
        return config, _left(Path(config.run.dir), config.run.name)
    return config, point


def _left(parent: Path, name: str) -> Anew | None:
    """The folder to begin anew in, if there is one that is not being written."""
    left = nothing_kept(parent, name)
    if left is None or is_being_written(left) or nothing_kept(parent, name) != left:  # until just now it may have been
        return None
    return Anew(run=left)


def _begun_anew(options: argparse.Namespace, overrides: Mapping[str, Any]) -> tuple[Config, Anew]:
    if options.config is None or options.resume is not None:
        raise ConfigError(f"--anew {options.anew} needs --config FILE, and goes without --resume")
    if not (options.anew / SETTINGS).is_file():
        raise ConfigError(f"--anew {options.anew}: this is no run's folder, as it has no {SETTINGS}; leave --anew out")
    return load_config(options.config, overrides), Anew(run=options.anew)
