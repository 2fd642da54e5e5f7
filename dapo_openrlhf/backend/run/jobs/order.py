"""What a submission sends, and what the job's own process reads (without Ray)."""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from dapo_openrlhf import __version__
from dapo_openrlhf.backend.passed_on import passed_on

ORDER = "DAPO_OPENRLHF_JOB"
"""Environment variable of the job that holds its :class:`Order`."""
MARK = "dapo_openrlhf"
"""Key in the metadata of every job of this project; its value is the version that submitted it."""
STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's variable for the seconds between SIGTERM and SIGKILL; Ray reads it where the job's command is started."""
MARGIN_SECONDS = 5.0
"""Seconds more than ``train.grace_seconds`` that a stop waits."""


def exported() -> dict[str, str]:
    """What is exported here for the libraries that a job uses, see :mod:`~dapo_openrlhf.backend.passed_on`."""
    return passed_on(os.environ)


def new_id() -> str:
    """An id for a submission, chosen here so that it is known whatever happens."""
    return f"dapo-{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the job's own process does."""

    id: str
    """The submission's id."""
    settings: str
    """The resolved configuration, as YAML."""
    resume: str | None = None
    """``auto``, or the folder of the run to go on with."""
    changes: tuple[str, ...] = ()
    """Settings that a run which is gone on with changes, as its command line has them."""
    retries: int = 0
    """How often a training that fails is begun again."""

    def to_json(self) -> str:
        """The order as text for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The order that :meth:`to_json` has written down."""
        values = json.loads(text)
        return cls(**values | {"changes": tuple(values["changes"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A submission to Ray's job API, with the names of its options."""

    order: Order
    grace: float
    """The run's ``train.grace_seconds``."""
    working_dir: str | None = None
    """A folder to upload, or the address of an archive; None where the job runs in the current folder's path."""
    excludes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    """``entrypoint_num_cpus``, ``entrypoint_num_gpus``, ``entrypoint_memory``, ``entrypoint_resources``."""

    def runtime(self) -> dict[str, Any]:
        """Ray's runtime environment of the job."""
        stop = math.ceil(self.grace + MARGIN_SECONDS)
        ours = {STOP_SECONDS: f"{stop}", ORDER: self.order.to_json()}
        runtime = dict(self.runtime_env) | {"env_vars": dict(self.environment) | ours}
        if self.working_dir is not None:
            runtime |= {"working_dir": self.working_dir}
            runtime["excludes"] = [*runtime.get("excludes", ()), *self.excludes]
        return runtime

    def all_metadata(self) -> dict[str, str]:
        """The job's metadata: the user's, and what marks a job of this project."""
        return {**self.metadata, MARK: __version__, "stop_seconds": f"{math.ceil(self.grace + MARGIN_SECONDS)}"}


def entrypoint(*, uploaded: bool) -> str:
    """The shell command that the cluster runs.

    With an uploaded working directory it runs there with the cluster's own Python; without one it runs in the path of
    the current folder, which every node must see, with this Python.
    """
    command = shlex.join(["python" if uploaded else sys.executable, "-u", "-m", "dapo_openrlhf", "job"])
    return command if uploaded else f"cd {shlex.quote(str(Path.cwd()))} && exec {command}"
