"""Ray's job API: one job, followed to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from dapo_openrlhf.config import ConfigError

NOT_UPLOADED = [".git", ".venv", ".cache", "runs", "**/__pycache__"]


class Job:
    """A job that a cluster has accepted."""

    def __init__(self, address: str, entrypoint: str, *, working_dir: Path | None) -> None:
        """Submit ``entrypoint`` to the dashboard at ``address``; ``working_dir`` is uploaded. Raises ``ConfigError``."""
        try:
            self._client = JobSubmissionClient(address)
        except ConnectionError as error:
            raise ConfigError(
                f"--address: no Ray dashboard answers at {address}; start the cluster with its dashboard, or give the "
                "address `ray start --head` prints"
            ) from error
        uploaded = {"working_dir": str(working_dir), "excludes": NOT_UPLOADED} if working_dir else None
        self.id = self._client.submit_job(entrypoint=entrypoint, runtime_env=uploaded)

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
