"""Ray's job API: submits one job and follows it to its end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from dapo_openrlhf.config.addresses import without_user
from dapo_openrlhf.config.errors import ConfigError

AGENT_SECONDS = 60.0
"""Seconds that a cluster may take to accept jobs after it has started."""
NOT_UPLOADED = [".git", ".venv", ".cache", "runs", "**/__pycache__"]


class Job:
    """A job that a cluster has accepted."""

    def __init__(self, address: str, entrypoint: str, *, working_dir: Path | None) -> None:
        """Submit ``entrypoint`` to the dashboard at ``address``; upload ``working_dir``. Raises ``ConfigError``."""
        try:
            self._client = JobSubmissionClient(address)
        except ConnectionError as error:
            raise ConfigError(
                f"--address: no Ray dashboard answers at {without_user(address)}; start the cluster with its dashboard, or give the "
                "address `ray start --head` prints"
            ) from error
        except ValueError as error:  # raised by requests for an answer that is not JSON
            raise ConfigError(
                f"--address: what answers at {without_user(address)} is no Ray dashboard; give the address `ray start --head` prints"
            ) from error
        uploaded = {"working_dir": str(working_dir), "excludes": NOT_UPLOADED} if working_dir else None
        self.id = self._submit(entrypoint, uploaded)

    def _submit(self, entrypoint: str, runtime_env: dict[str, Any] | None) -> str:
        """Submit the job, repeatedly if need be: a dashboard answers some seconds before its agent accepts jobs."""
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def follow(self) -> None:
        """Print the job's log until it ends."""
        asyncio.run(self._print_log())

    async def _print_log(self) -> None:
        async for lines in self._client.tail_job_logs(self.id):
            print(lines, end="", flush=True)

    def outcome(self) -> tuple[bool, str]:
        """Whether the job succeeded, and its state in words."""
        status, details = self._client.get_job_status(self.id), self._client.get_job_info(self.id).message
        return status == JobStatus.SUCCEEDED, f"{status.value.lower()}" + (f" ({details})" if details else "")
