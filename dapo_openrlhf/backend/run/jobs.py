"""Ray's job API: submits one job and follows it to its end."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from dapo_openrlhf.backend.passed_on import passed_on
from dapo_openrlhf.config.addresses import without_user
from dapo_openrlhf.config.errors import ConfigError

AGENT_SECONDS = 60.0
"""Seconds that a cluster may take to accept jobs after it has started."""
STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""Ray's variable for the seconds between SIGTERM and SIGKILL; Ray reads it where the job's command is started."""
NOT_UPLOADED = [".git", ".venv", ".cache", "runs", "**/__pycache__"]


class Job:
    """A job of a cluster; its ``id`` is chosen here, so that it is known whatever happens."""

    def __init__(self, address: str) -> None:
        """Reach the dashboard at ``address``. Raises ``ConfigError``."""
        self.id = f"dapo-{secrets.token_hex(6)}"
        self._printed = 0  # characters of the log
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

    def submit(self, entrypoint: str, *, working_dir: Path | None, stop_seconds: float) -> None:
        """Have ``entrypoint`` run, with ``working_dir`` uploaded. ``ray job stop`` gives it ``stop_seconds``.

        The job gets this process's settings for the libraries that it uses, see
        :mod:`~dapo_openrlhf.backend.passed_on`. It is tried repeatedly if need be: a dashboard answers some seconds
        before its agent accepts jobs.
        """
        variables = passed_on(os.environ) | {STOP_SECONDS: f"{math.ceil(stop_seconds)}"}
        runtime_env: dict[str, Any] = {"env_vars": variables}
        if working_dir is not None:
            runtime_env |= {"working_dir": str(working_dir), "excludes": NOT_UPLOADED}
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, submission_id=self.id)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def follow(self) -> None:
        """Print the job's log until it ends, or the connection does; a second call prints what was not printed yet."""
        asyncio.run(self._print_log())

    async def _print_log(self) -> None:
        begin = 0
        async for lines in self._client.tail_job_logs(self.id):
            end = begin + len(lines)
            if end > self._printed:
                print(lines[max(0, self._printed - begin) :], end="", flush=True)
                self._printed = end
            begin = end

    def ended(self) -> bool:
        """Whether the job has come to its end."""
        return self._client.get_job_status(self.id).is_terminal()

    def outcome(self) -> tuple[bool, str]:
        """Whether the job succeeded, and its state in words."""
        status, details = self._client.get_job_status(self.id), self._client.get_job_info(self.id).message
        return status == JobStatus.SUCCEEDED, f"{status.value.lower()}" + (f" ({details})" if details else "")
