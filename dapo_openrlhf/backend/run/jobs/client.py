"""Ray's job API: submits jobs, follows, lists and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dapo_openrlhf.backend.run.jobs.dashboard import VARIABLES
from dapo_openrlhf.backend.run.jobs.order import MARK, Request, entrypoint
from dapo_openrlhf.config.addresses import without_user
from dapo_openrlhf.config.errors import ConfigError

AGENT_SECONDS = 60.0
"""Seconds that a cluster may take to accept jobs after it has started."""
REPLY_SECONDS = 60.0
"""Seconds that a dashboard may take for one answer; the sending of an upload does not count."""
SILENT_SECONDS = 60.0
"""Seconds without a line after which it is asked whether the connection to a log still is one."""
LATE_SECONDS = 10.0
"""Seconds that a line, or the end of a log, may be on its way."""
LOG_COPY = ", last available logs"
"""What begins the copy of the log in a failed job's message."""
LOST = (OSError, RuntimeError, aiohttp.ClientError)
"""What Ray's client raises when the connection is lost, and when a request is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A job as the cluster tells of it."""

    id: str
    state: str
    """Ray's word for it: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    ended: bool
    ours: bool
    """Whether this project submitted it."""
    message: str
    """Why it ended, without a copy of its log."""
    exit_code: int | None
    started: float | None
    """Unix time in seconds."""
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, details: JobDetails) -> JobState:
        """Read what Ray says."""
        metadata = details.metadata or {}
        return cls(
            id=details.submission_id or "",
            state=details.status.value,
            ended=details.status.is_terminal(),
            ours=MARK in metadata,
            message=(details.message or "").partition(LOG_COPY)[0],
            exit_code=0 if details.status == JobStatus.SUCCEEDED else details.driver_exit_code,
            started=None if details.start_time is None else details.start_time / 1000,
            metadata=metadata,
        )


class _Client(JobSubmissionClient):
    """Ray's client, which waits for ever, with a time limit."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": REPLY_SECONDS, **options})


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Reach the dashboard at ``url``, which has answered. Raises ``ConfigError``."""
        self.address = without_user(url)
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        try:
            with _without_variables():
                self._client = _Client(url, headers=dict(headers) or None)
        except (*LOST, RayError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the dashboard at {self.address} refuses: {reason}") from error

    def submit(self, request: Request) -> None:
        """Have a request run. Raises ``ConfigError`` where the cluster refuses it.

        It is tried repeatedly if need be: a dashboard answers some seconds before its agent accepts jobs.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint(uploaded=request.working_dir is not None),
                    runtime_env=request.runtime(),
                    submission_id=request.order.id,
                    metadata=request.all_metadata(),
                    **request.resources,
                )
                return
            except LOST as error:
                reason = " ".join(str(error).split())
                if "already exists" in reason or "has already been" in reason:
                    raise ConfigError(f"--submission-id: {request.order.id} is the id of another job there") from error
                if "No available agent" not in reason or time.monotonic() > deadline:
                    raise ConfigError(f"the cluster at {self.address} does not take the job: {reason[:600]}") from error
                time.sleep(1)

    def follow(self, job: str, tell: Callable[[str], None], *, skip: int) -> None:
        """Tell what the log has beyond its first ``skip`` characters, until the job ends. Raises :data:`LOST`."""
        asyncio.run(self._follow(job, tell, skip))

    async def _follow(self, job: str, tell: Callable[[str], None], skip: int) -> None:
        read = 0
        texts = aiter(self._client.tail_job_logs(job))
        while True:
            text = await self._next(texts, job, read)
            if text is None:
                return
            if read + len(text) > skip:
                tell(text[max(0, skip - read) :])
            read += len(text)

    async def _next(self, texts: AsyncIterator[str], job: str, read: int) -> str | None:
        """What comes next of a log of which ``read`` characters came; None at its end.

        A connection whose other end is gone without a word is silent for ever, as is a job that prints nothing: after a
        silence the cluster is asked which of them it is. Raises :data:`LOST`.
        """
        coming: asyncio.Task[str | None] = asyncio.ensure_future(_or_none(texts))
        try:
            while not (await asyncio.wait([coming], timeout=SILENT_SECONDS))[0]:
                more = await asyncio.to_thread(self._has_more, job, read)
                if more and not (await asyncio.wait([coming], timeout=LATE_SECONDS))[0]:
                    raise ConnectionError(f"nothing came for {SILENT_SECONDS:g} s, and the log goes on")
            return coming.result()
        finally:
            coming.cancel()

    def _has_more(self, job: str, read: int) -> bool:
        """Whether a log has more than what came, or is complete."""
        ended = self.state(job).ended
        return ended or len(self.log(job)) > read

    def log(self, job: str) -> str:
        """All of a job's log until now. Raises :data:`LOST`."""
        return self._client.get_job_logs(job)

    def state(self, job: str) -> JobState:
        """What is known of a job. Raises ``ConfigError`` for an unknown one, and :data:`LOST`."""
        try:
            return JobState.of(self._client.get_job_info(job))
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            raise ConfigError(f"there is no job {job} on the cluster at {self.address}") from error

    def all(self) -> list[JobState]:
        """All submitted jobs that the cluster remembers, the oldest first. Raises :data:`LOST`."""
        jobs = [JobState.of(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0.0)

    def stop(self, job: str) -> None:
        """Ask a job to stop. Raises :data:`LOST`."""
        self._client.stop_job(job)


async def _or_none(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)


@contextmanager
def _without_variables() -> Iterator[None]:
    """Keep Ray's client from preferring the environment's address to the one it is given."""
    before = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
