"""The commands ``jobs``, ``status``, ``logs`` and ``stop``: what becomes of the jobs of this project on a cluster."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dapo_openrlhf import stopping
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.program import program
from dapo_openrlhf.report.progress import clock_time
from dapo_openrlhf.report.run_folder import run_called
from dapo_openrlhf.report.status import FILE, PREFIX, read_status

if TYPE_CHECKING:
    from dapo_openrlhf.backend.run.jobs.client import Jobs, JobState

Answer = TypeVar("Answer")

AGAIN_SECONDS = 2.0
"""Seconds between two attempts to reach a cluster, or two looks at a job."""
LOST_SECONDS = 120.0
"""Seconds without an answer after which a cluster counts as lost."""
STOPPED = 143
"""Exit code of a job that was asked to stop, for which Ray keeps none: that of SIGTERM."""
LAST_SECOND = 1e11
"""Unix time in seconds beyond which there is no year of four digits."""
STOP_MARGIN_SECONDS = 60.0
"""Seconds more than a job has for its end in which it must have ended."""


def add_cluster(command: argparse.ArgumentParser) -> None:
    """Add the options that say which cluster."""
    command.add_argument(
        "--address",
        metavar="ADDRESS",
        help="the cluster: its dashboard's http://host:port, host:port, or auto; default: RAY_API_SERVER_ADDRESS, "
        "RAY_ADDRESS, http://127.0.0.1:8265",
    )
    command.add_argument("--headers", metavar="JSON", help="headers of every request, such as a token's")


def add_options(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options of one of the four commands."""
    add_cluster(command)
    if name == "jobs":
        command.add_argument("--all", action="store_true", help="those that other projects submitted too")
    elif name == "status":
        command.add_argument("job", metavar="JOB", help="a job's id or the beginning of it, or a run's folder")
    else:
        command.add_argument("job", metavar="JOB", help="a job's id or the beginning of it, or the folder of its run")
    if name in ("jobs", "status"):
        command.add_argument("--json", action="store_true", help="print JSON")
    if name == "logs":
        command.add_argument("--follow", action="store_true", help="go on until the job ends; returns its exit code")


def headers_of(options: argparse.Namespace) -> Mapping[str, str]:
    """The headers of every request. Raises ``ConfigError``."""
    if options.headers is None:
        return {}
    try:
        headers = json.loads(options.headers)
    except ValueError as error:
        raise ConfigError(f"--headers: not JSON: {error}") from error
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ConfigError('--headers: not a mapping of texts, such as {"X-Name": "value"}')
    return headers


def reached(options: argparse.Namespace) -> Jobs:
    """The cluster that the options name. Raises ``ConfigError``."""
    from dapo_openrlhf.backend.run.jobs.dashboard import dashboard_of, given_address

    headers = headers_of(options)
    url = dashboard_of(given_address(options.address), headers)
    from dapo_openrlhf.backend.run.jobs.client import Jobs  # takes seconds, which a wrong address need not wait for

    return Jobs(url, headers)


def _reached(options: argparse.Namespace) -> Jobs:
    with stopping.nothing_to_lose("nothing was changed"):
        return reached(options)


def _asked(jobs: Jobs, ask: Callable[[], Answer]) -> Answer:
    """An answer of the cluster. Raises ``ConfigError`` where there is none."""
    from dapo_openrlhf.backend.run.jobs.client import LOST

    try:
        return ask()
    except LOST as error:
        raise ConfigError(f"the cluster at {jobs.address} does not answer: {' '.join(str(error).split())}") from error


def _id_of(name: str) -> str:
    """What a user gave as a job, or the id of the job that has written the run in that folder. Raises ``ConfigError``."""
    folder = run_called(Path(name))
    if not name.strip():
        raise ConfigError(f"{name!r} is no job's id; `{program()} jobs` lists them")
    if folder.is_dir() and (found := read_status(folder)):
        if not found.get("job"):
            raise ConfigError(f"{name}: no job has done this run; `{program()} jobs` lists the jobs")
        return found["job"]
    if "/" in name:
        raise ConfigError(f"{name}: this is no job's id, and no folder of a run with a status.json")
    return name


def _named(jobs: Jobs, name: str) -> JobState:
    """The job of that id, or the only one whose id begins so. Raises ``ConfigError``."""
    known = _asked(jobs, jobs.all)
    found = [job for job in known if job.id == name] or [job for job in known if job.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(job.id for job in (found or known) if job.ours) or "none"
    what = "several jobs begin so" if found else f"there is no such job on the cluster at {jobs.address}"
    raise ConfigError(f"{name}: {what}; jobs: {ids}")


def jobs(options: argparse.Namespace) -> int:
    """Print a line for each job of this project."""
    cluster = _reached(options)
    known = _asked(cluster, cluster.all)
    shown = [job for job in known if job.ours or options.all]
    if options.json:
        print(json.dumps([asdict(job) for job in shown], indent=2))
        return 0
    if not shown:
        print(f"no jobs of this project on the cluster at {cluster.address}")
        return 0
    rows = [("job", "state", "step", "accuracy", "tokens/s", "left", "run"), *(row_of(job) for job in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]))
    return 0


def row_of(job: JobState) -> tuple[str, ...]:
    """The cells of a job's line."""
    told = {name.removeprefix(PREFIX): value for name, value in job.metadata.items() if name.startswith(PREFIX)}
    step = f"{told['step']}/{told['max_steps']}" if {"step", "max_steps"} <= told.keys() else ""
    left, accuracy, rate = (number(told, name) for name in ("seconds_left", "accuracy", "tokens_per_second"))
    return (
        job.id,
        job.state.lower() + (f" ({job.exit_code})" if job.exit_code else ""),
        step,
        "" if accuracy is None else f"{accuracy:.1%}",
        "" if rate is None else f"{rate:,.0f}",
        "" if left is None or job.ended else clock_time(max(0.0, left)),
        told.get("run", job.metadata.get("run", "")),
    )


def number(told: Mapping[str, str], name: str) -> float | None:
    """A number of a status, which a damaged file or another program may have left; None where there is none."""
    try:
        value = float(told.get(name, "nan"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def status(options: argparse.Namespace) -> int:
    """Print what is known of one job, or of a run's folder."""
    folder = run_called(Path(options.job))
    if options.job and (found := read_status(folder)):
        print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
        return 0
    if options.job and folder.is_dir():
        what = (
            "the status.json in this folder cannot be read" if (folder / FILE).exists() else "no status.json is in it"
        )
        raise ConfigError(f"{folder}: {what}; give the folder of another run, such as runs/latest, or a job's id")
    name = _id_of(options.job)
    job = _named(_reached(options), name)
    if options.json:
        print(json.dumps(asdict(job), indent=2))
        return 0
    told = {name.removeprefix(PREFIX): value for name, value in job.metadata.items()}
    code = {} if job.exit_code is None else {"exit code": f"{job.exit_code}"}
    why = {"message": job.message} if job.message else {}
    print("\n".join(_lines({"job": job.id, **told, "state": job.state.lower(), **code, **why})))
    return 0


def _lines(values: Mapping[str, str]) -> list[str]:
    shown = {name: value for name, value in values.items() if value and name not in ("stop_seconds", "dapo_openrlhf")}
    if (updated := number(shown, "updated")) is not None and 0 <= updated < LAST_SECOND:
        shown["updated"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(updated))
    if (left := number(shown, "seconds_left")) is not None:
        del shown["seconds_left"]
        shown["time left"] = clock_time(max(0.0, left))
    width = max(map(len, shown), default=0)
    return [f"{name.replace('_', ' '):<{width}}  {value}" for name, value in shown.items()]


def logs(options: argparse.Namespace) -> int:
    """Print a job's log; with ``--follow`` until it ends."""
    name = _id_of(options.job)
    cluster = _reached(options)
    job = _named(cluster, name)
    if options.follow:
        to_see = f"{program()} logs --follow {shlex.quote(job.id)}"
        with stopping.telling(lambda: f"the job {job.id} goes on; to see it: {to_see}"):
            return follow(cluster, job.id, to_see)
    text = _asked(cluster, lambda: cluster.log(job.id))
    print(text, end="" if text.endswith("\n") else "\n")
    return 0


def stop(options: argparse.Namespace) -> int:
    """Ask a job to stop, wait until it has, and say what it has kept."""
    from dapo_openrlhf.backend.run.jobs.client import LOST

    name = _id_of(options.job)
    cluster = _reached(options)
    job = _named(cluster, name)
    if job.ended:
        print(f"job {job.id} has ended already: {job.state.lower()}")
        return 0
    seconds = number(job.metadata, "stop_seconds") or 3.0
    with stopping.telling(lambda: f"the job {job.id} was asked to stop, and may need {seconds:g} s"):
        try:
            cluster.stop(job.id)
            print(f"job {job.id}: asked to stop; it has {seconds:g} s to save a checkpoint", flush=True)
            deadline = time.monotonic() + seconds + STOP_MARGIN_SECONDS
            while not (state := cluster.state(job.id)).ended:
                if time.monotonic() > deadline:
                    print(f"job {job.id}: has not ended within {seconds + STOP_MARGIN_SECONDS:g} s", file=sys.stderr)
                    return 1
                time.sleep(0.5)
            lines = [line for line in cluster.log(job.id).splitlines() if line.startswith("stopped by")]
        except LOST as error:
            print(f"job {job.id}: its cluster no longer answers: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    print(f"job {job.id}: {state.state.lower()}" + (f"; {lines[-1]}" if lines else ""))
    return 0


def follow(cluster: Jobs, job: str, to_see: str) -> int:
    """Print a job's log until it ends, also through lost connections; returns the job's exit code."""
    from dapo_openrlhf.backend.run.jobs.client import LOST

    printed, heard, lost = 0, time.monotonic(), False

    def tell(text: str) -> None:
        nonlocal printed, heard, lost
        print(text, end="", flush=True)
        printed, heard, lost = printed + len(text), time.monotonic(), False

    while True:
        try:
            cluster.follow(job, tell, skip=printed)
            state = cluster.state(job)
            heard = time.monotonic()
            if state.ended:
                return _told(state)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 1
        except LOST as error:
            reason = " ".join(str(error).split())
            if time.monotonic() - heard > LOST_SECONDS:
                print(
                    f"job {job}: its cluster has not answered for {LOST_SECONDS:g} s, and the job may go on: {reason}; to "
                    f"see it: {to_see}",
                    file=sys.stderr,
                )
                return 1
            if not lost:
                print(f"job {job}: the connection is lost ({reason}); trying again", file=sys.stderr, flush=True)
            lost = True
        time.sleep(AGAIN_SECONDS)


def _told(state: JobState) -> int:
    """Print a job's end; returns its exit code."""
    message = " ".join(state.message.split())
    print(f"job {state.id}: {state.state.lower()}" + (f" ({message})" if message and state.exit_code != 0 else ""))
    if state.exit_code is not None:
        return state.exit_code if state.exit_code >= 0 else 128 - state.exit_code
    return STOPPED if state.state == "STOPPED" else 1
