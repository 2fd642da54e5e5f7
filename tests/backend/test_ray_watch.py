"""What happens when Ray's own processes end while a run is going, with stand-ins for them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from ray._private import worker

from dapo_openrlhf.backend.run.ray_watch import RayDied, deaths, while_ray_lives


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes in place of Ray's, by Ray's names."""
    command = [sys.executable, "-c", "import time; time.sleep(1e6)"]
    made = {name: subprocess.Popen(command) for name in ("gcs_server", "raylet", "log_monitor")}
    started = {name: [SimpleNamespace(process=process)] for name, process in made.items()}
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes=started))
    yield made
    for process in made.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize(("name", "words"), [("gcs_server", "Ray's GCS"), ("raylet", "Ray's raylet")])
def test_the_death_of_a_vital_process_ends_the_work_and_is_named(
    node: dict[str, subprocess.Popen[bytes]], name: str, words: str
) -> None:
    ended: list[str] = []

    async def work() -> None:
        node[name].kill()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("closed")

    with pytest.raises(RayDied, match=rf"^{words}.* was killed by signal 9 \(process {node[name].pid}\); perhaps"):
        asyncio.run(while_ray_lives(work()))
    assert ended == ["closed"]


def test_an_error_that_follows_from_a_death_is_reported_as_that_death(node: dict[str, subprocess.Popen[bytes]]) -> None:
    async def work() -> None:
        node["raylet"].send_signal(signal.SIGTERM)
        node["raylet"].wait()
        raise ConnectionError("an actor died")

    with pytest.raises(RayDied, match="signal 15"):
        asyncio.run(while_ray_lives(work()))


def test_nothing_is_changed_while_ray_lives(node: dict[str, subprocess.Popen[bytes]]) -> None:
    async def work() -> int:
        node["log_monitor"].kill()
        node["log_monitor"].wait()
        return 7

    async def failing() -> None:
        raise ConnectionError("its own")

    assert asyncio.run(while_ray_lives(work())) == 7
    with pytest.raises(ConnectionError, match="its own"):
        asyncio.run(while_ray_lives(failing()))


def test_the_processes_of_a_joined_cluster_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes={}))
    assert not list(deaths())
    monkeypatch.setattr(worker, "_global_node", None)
    assert not list(deaths())


def test_of_ray_s_own_errors_only_the_autopsy_of_its_raylet_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda error, **_: said.extend(error["lines"]))

    async def work() -> None:
        for line in ("Raylet is terminated. Termination is unexpected.", "2 workers were killed for want of memory"):
            worker.print_to_stdstream({"lines": [line], "pid": "raylet"}, ignore_prefix=False)

    asyncio.run(while_ray_lives(work()))
    assert said == ["2 workers were killed for want of memory"]
