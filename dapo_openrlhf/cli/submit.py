"""The command ``dapo-openrlhf submit``: does the same run on a Ray cluster, through Ray's job API."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_openrlhf import stopping
from dapo_openrlhf.config.addresses import without_user

if TYPE_CHECKING:
    from dapo_openrlhf.backend.run.jobs import Job


FOLLOW_AGAIN_SECONDS = 2.0
MARGIN_SECONDS = 5.0
"""Seconds more than ``train.grace_seconds`` that ``ray job stop`` waits."""


def submit(options: argparse.Namespace, settings: Sequence[str], *, grace: float) -> int:
    """Submit ``train`` with the same configuration and settings and follow its log; returns 0 if the job succeeded.

    ``grace``: the run's ``train.grace_seconds``.
    """
    with stopping.nothing_to_lose("no job was submitted"):
        from dapo_openrlhf.backend.run.jobs import Job

    source = [] if options.config is None else ["--config", str(options.config)]
    source += [] if options.resume is None else ["--resume", options.resume]
    command = entrypoint([*source, *settings], uploaded=options.working_dir is not None)
    address = without_user(options.address)
    with stopping.telling(lambda: "no job was submitted"):
        job = Job(options.address)
    to_see, to_stop = (f"ray job {verb} --address {address} {job.id}" for verb in ("logs --follow", "stop"))
    with stopping.telling(lambda: f"the job {job.id} may have been accepted; to stop it: {to_stop}"):
        job.submit(command, working_dir=options.working_dir, stop_seconds=grace + MARGIN_SECONDS)
    with stopping.telling(lambda: f"the job {job.id} goes on; to see it: {to_see}; to stop it: {to_stop}"):
        print(f"job {job.id} accepted by {address}; to stop it: {to_stop}", flush=True)
        if options.no_wait:
            return 0
        return _followed(job, to_see)


def _followed(job: Job, to_see: str) -> int:
    """Print the job's log and its result; returns the exit status."""
    try:
        while True:
            job.follow()
            if job.ended():
                break
            time.sleep(FOLLOW_AGAIN_SECONDS)  # the connection was lost, and the job goes on
        succeeded, state = job.outcome()
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        print(
            f"job {job.id}: its cluster no longer answers, and the job may go on: {reason}; to see it: {to_see}",
            file=sys.stderr,
        )
        return 1
    print(f"job {job.id}: {state}")
    return 0 if succeeded else 1


def entrypoint(arguments: Sequence[str], *, uploaded: bool) -> str:
    """The shell command that the cluster runs: ``train`` with the same arguments.

    With an uploaded working directory, it runs there with the cluster's own Python; without one, it runs in the path of
    the current folder, which every node must see, with this Python.
    """
    python = "python" if uploaded else sys.executable
    command = shlex.join([python, "-u", "-m", "dapo_openrlhf", "train", *arguments])
    return command if uploaded else f"cd {shlex.quote(str(Path.cwd()))} && {command}"
