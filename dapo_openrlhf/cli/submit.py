"""The command ``dapo-openrlhf submit``: has a run done by a Ray cluster, through Ray's job API."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.jobs import add_cluster, follow, reached
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import dump_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.program import program

if TYPE_CHECKING:
    from dapo_openrlhf.backend.run.jobs.upload import Upload


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options; where Ray's own `ray job submit` has one, it has Ray's name."""
    add_cluster(command)
    command.add_argument(
        "--working-dir",
        metavar="DIR",
        help="upload this folder to the cluster; without it the job runs in the current folder's path",
    )
    command.add_argument(
        "--no-wait", action="store_true", help="print the job's id once it is accepted, and nothing else"
    )
    command.add_argument("--retries", type=int, default=0, metavar="N", help="begin a training that fails again, from its "
        "newest good checkpoint, up to N times")  # fmt: skip
    command.add_argument("--submission-id", metavar="ID", help="the job's id; a new one by default")
    command.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the job; repeatable"
    )
    command.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="kept with the job; repeatable"
    )
    command.add_argument("--runtime-env", type=Path, metavar="FILE", help="Ray's runtime environment, as YAML")
    command.add_argument("--runtime-env-json", metavar="JSON", help="the same as JSON")
    for name, what in (("cpus", "CPUs"), ("gpus", "GPUs")):
        command.add_argument(
            f"--entrypoint-num-{name}", type=float, metavar="N", help=f"{what} reserved for the job's own process"
        )
    command.add_argument("--entrypoint-memory", type=int, metavar="BYTES", help="memory reserved for it")
    command.add_argument("--entrypoint-resources", metavar="JSON", help="custom resources reserved for it")


def submit(options: argparse.Namespace, config: Config, changes: Sequence[str]) -> int:
    """Submit the resolved configuration and follow the job's log; returns the job's exit code.

    ``changes``: the settings of the command line, for a run that is gone on with.
    """
    options_checked(options)
    with stopping.nothing_to_lose("no job was submitted"):
        from dapo_openrlhf.backend.run.jobs.order import Order, Request, exported, new_id
        from dapo_openrlhf.backend.run.jobs.sight import refuse_unseen
        from dapo_openrlhf.backend.run.jobs.upload import NOT_UPLOADED

    runtime = runtime_env_of(options)
    working_dir = options.working_dir or runtime.pop("working_dir", None)
    environment = exported() | runtime.pop("env_vars", {}) | pairs(options.env, "--env")
    metadata, resources = pairs(options.metadata, "--metadata"), resources_of(options)
    with stopping.telling(lambda: "no job was submitted"):
        upload = _upload(working_dir, runtime)
        if working_dir is not None:
            refuse_unseen(config, options.resume, upload)
        with stopping.nothing_to_lose("no job was submitted"):
            jobs = reached(options)
    resume = options.resume if options.resume in (None, "auto") or working_dir else str(Path(options.resume).resolve())
    job = options.submission_id or new_id()
    request = Request(
        order=Order(
            id=job, settings=dump_config(config), resume=resume, changes=tuple(changes), retries=options.retries
        ),
        grace=config.train.grace_seconds,
        working_dir=None if working_dir is None else str(working_dir),
        excludes=NOT_UPLOADED,
        environment=environment,
        runtime_env=runtime,
        metadata={"run": config.run.name, **metadata},
        resources=resources,
    )
    at = "" if options.address is None else f" --address {shlex.quote(jobs.address)}"
    to_see, to_stop = (f"{program()} {verb} {shlex.quote(job)}{at}" for verb in ("logs --follow", "stop"))
    if upload is not None:
        size = f"{len(upload.sizes):,} files, {upload.total / 1e6:,.1f} MB"
        print(f"uploading {upload.root}: {size}", file=sys.stderr, flush=True)
    with stopping.telling(lambda: f"the job {job} may have been accepted; to stop it: {to_stop}"):
        jobs.submit(request)
    with stopping.telling(lambda: f"the job {job} goes on; to see it: {to_see}; to stop it: {to_stop}"):
        told = sys.stderr if options.no_wait else sys.stdout
        print(
            f"job {job} accepted by {jobs.address}; to see it: {to_see}; to stop it: {to_stop}", file=told, flush=True
        )
        if options.no_wait:
            print(job, flush=True)
            return 0
        return follow(jobs, job, to_see)


def _upload(working_dir: str | None, runtime: Mapping[str, Any]) -> Upload | None:
    from dapo_openrlhf.backend.run.jobs.upload import upload_of

    if working_dir is None or "://" in str(working_dir):
        return None
    return upload_of(Path(working_dir), runtime.get("excludes", ()))


def options_checked(options: argparse.Namespace) -> None:
    """Refuse values that no job can have. Raises ``ConfigError``."""
    if options.retries < 0:
        raise ConfigError(f"--retries: {options.retries} is not a number of times; use 0 or more")
    if options.runtime_env is not None and options.runtime_env_json is not None:
        raise ConfigError("--runtime-env and --runtime-env-json say the same twice; leave one of them out")
    for name in ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory"):
        value = vars(options)[name]
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--{name.replace('_', '-')}: {value:g} cannot be reserved; use 0 or more")
    if options.working_dir == "":
        raise ConfigError("--working-dir: no folder is given; leave the option out to run in the current folder's path")
    if options.submission_id is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", options.submission_id):
        raise ConfigError(f"--submission-id: {options.submission_id!r} is no id; use letters, digits, - and _")


def runtime_env_of(options: argparse.Namespace) -> dict[str, Any]:
    """Ray's runtime environment as the options give it. Raises ``ConfigError``."""
    runtime: object = {}
    if options.runtime_env is not None:
        try:
            runtime = yaml.safe_load(options.runtime_env.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"--runtime-env: {options.runtime_env} cannot be read: {error}") from error
    elif options.runtime_env_json is not None:
        runtime = _json(options.runtime_env_json, "--runtime-env-json")
    if not isinstance(runtime, dict) or not isinstance(runtime.get("env_vars", {}), dict):
        raise ConfigError("--runtime-env: not a mapping as Ray takes it, such as {env_vars: {NAME: VALUE}}")
    if "working_dir" in runtime and options.working_dir is not None:
        raise ConfigError("--working-dir: the runtime environment has a working_dir too; leave one of them out")
    for name, value in runtime.get("env_vars", {}).items():
        if not isinstance(value, str | int | float):
            raise ConfigError(f"--runtime-env: env_vars has {value!r} for {name}; write a text")
    variables = {str(name): str(value) for name, value in runtime.get("env_vars", {}).items()}
    return {**runtime, "env_vars": variables}


def resources_of(options: argparse.Namespace) -> dict[str, Any]:
    """What is reserved for the job's own process. Raises ``ConfigError``."""
    found = {
        "entrypoint_num_cpus": options.entrypoint_num_cpus,
        "entrypoint_num_gpus": options.entrypoint_num_gpus,
        "entrypoint_memory": options.entrypoint_memory,
        "entrypoint_resources": None
        if options.entrypoint_resources is None
        else _resources(_json(options.entrypoint_resources, "--entrypoint-resources")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _resources(value: Any) -> Any:
    if not isinstance(value, dict) or not all(
        type(number) in (int, float) and number >= 0 for number in value.values()
    ):
        raise ConfigError('--entrypoint-resources: not numbers by name, such as {"big": 1}')
    return value


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping. Raises ``ConfigError``."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option}: {text!r} is not NAME=VALUE")
        found[name] = value
    return found


def _json(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not JSON: {error}") from error
