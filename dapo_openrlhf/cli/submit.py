"""The command ``dapo-openrlhf submit``: does the same run on a Ray cluster, through Ray's job API."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dapo_openrlhf.config.addresses import without_user


def submit(options: argparse.Namespace, settings: Sequence[str]) -> int:
    """Submit ``train`` with the same configuration and settings and follow its log; returns 0 if the job succeeded."""
    from dapo_openrlhf.backend.run.jobs import Job

    source = [] if options.config is None else ["--config", str(options.config)]
    source += [] if options.resume is None else ["--resume", options.resume]
    command = entrypoint([*source, *settings], uploaded=options.working_dir is not None)
    job = Job(options.address, command, working_dir=options.working_dir)
    address = without_user(options.address)
    print(f"job {job.id} accepted by {address}; to stop it: ray job stop --address {address} {job.id}")
    if options.no_wait:
        return 0
    job.follow()
    succeeded, state = job.outcome()
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
