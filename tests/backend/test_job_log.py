"""A job's log is followed through silence, and not for ever through a connection whose other end is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from dapo_openrlhf.backend.run.jobs import client
from dapo_openrlhf.backend.run.jobs.client import Jobs


class SilentCluster:
    """Sends one line and then nothing until it is asked for the log ``asked`` times; then the connection ends."""

    def __init__(self, *, log: str, ended: bool = False, asked: int = 1_000_000) -> None:
        self.log, self.ended, self.left = log, ended, asked
        self.over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self._loop = asyncio.get_running_loop()
        yield "one\n"
        await self.over.wait()

    def get_job_logs(self, job: str) -> str:
        self.left -= 1
        if self.left == 0:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self.over.set)
        return self.log

    def jobs(self, monkeypatch: pytest.MonkeyPatch) -> Jobs:
        monkeypatch.setattr(client, "SILENT_SECONDS", 0.01)
        monkeypatch.setattr(client, "LATE_SECONDS", 0.01)
        jobs = object.__new__(Jobs)
        of_ray: Any = self
        jobs._client = of_ray
        monkeypatch.setattr(jobs, "state", lambda job: SimpleNamespace(ended=self.ended))
        return jobs


def follow(cluster: SilentCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    cluster.jobs(monkeypatch).follow("j1", told.append, skip=0)
    return told


def test_a_job_that_prints_nothing_is_followed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert follow(SilentCluster(log="one\n", asked=3), monkeypatch) == ["one\n"]


@pytest.mark.parametrize(("log", "ended"), [("one\ntwo\n", False), ("one\n", True)])
def test_a_log_that_goes_on_without_us_is_a_lost_connection(
    log: str, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionError, match="and the log goes on"):
        follow(SilentCluster(log=log, ended=ended), monkeypatch)


def test_a_cluster_that_does_not_answer_either_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SilentCluster(log="one\n")

    def no_answer(job: str) -> str:
        raise OSError("no answer within 60 s")

    monkeypatch.setattr(cluster, "get_job_logs", no_answer)
    with pytest.raises(OSError, match="no answer"):
        follow(cluster, monkeypatch)
