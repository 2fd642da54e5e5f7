"""``dapo-openrlhf submit``: the same run on a Ray cluster, through Ray's job API."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dapo_openrlhf.config import ConfigError

NOT_UPLOADED = [".git", ".venv", ".cache", "runs", "**/__pycache__"]


def submit(options: argparse.Namespace, settings: Sequence[str]) -> int:
    """Submit ``train`` with the same configuration and settings; follow its log; 0 if the job succeeded."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(options.address)
    except ConnectionError as error:
        raise ConfigError(
            f"--address: no Ray dashboard answers at {options.address}; start the cluster with its dashboard, or give "
            "the address `ray start --head` prints"
        ) from error
    job = client.submit_job(
        entrypoint=entrypoint(options.config, settings, uploaded=options.working_dir is not None),
        runtime_env=(
            {"working_dir": str(options.working_dir), "excludes": NOT_UPLOADED} if options.working_dir else None
        ),
    )
    print(f"job {job} accepted by {options.address}; stop it with: ray job stop --address {options.address} {job}")
    if options.no_wait:
        return 0
    asyncio.run(_follow(client, job))
    status, details = client.get_job_status(job), client.get_job_info(job).message
    print(f"job {job}: {status.value.lower()}" + (f" ({details})" if details else ""))
    return 0 if status == JobStatus.SUCCEEDED else 1


def entrypoint(config: Path, settings: Sequence[str], *, uploaded: bool) -> str:
    """The shell command the cluster runs: ``train`` with the same arguments.

    With an uploaded working directory it runs there with the cluster's own Python; without one in the path of the
    current folder, which every node must see, with this Python.
    """
    python = "python" if uploaded else sys.executable
    command = shlex.join([python, "-u", "-m", "dapo_openrlhf", "train", "--config", str(config), *settings])
    return command if uploaded else f"cd {shlex.quote(str(Path.cwd()))} && {command}"


async def _follow(client: object, job: str) -> None:
    async for lines in client.tail_job_logs(job):  # type: ignore[attr-defined]
        print(lines, end="", flush=True)
