"""How a cluster of a run's own is started, closed to others, and ended, with stand-ins for Ray's processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from patience import HANG_SECONDS
from ray._private import ray_constants, services
from ray._private.authentication.authentication_utils import is_token_auth_enabled

from dapo_openrlhf.backend.run import cluster, own_cluster
from dapo_openrlhf.backend.run.own_cluster import MARK, RayNotStarted, Size

SIZE = Size(cpus=2, gpus=0, object_store_bytes=1 << 20)
TIMED_OUT = "The current node timed out during startup.\nThis could happen"


class Starts:
    """Ray's start and its end; each start leaves a process behind."""

    def __init__(self) -> None:
        self.outcomes: list[BaseException | None] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.shut_down = 0
        self.waited: list[float] = []

    def init(self, **_: object) -> None:
        command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1e6)"]
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # before a process runs its program it has the environment of its parent
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def shutdown(self) -> None:
        self.shut_down += 1

    def all_gone(self) -> bool:
        return all(process.wait(HANG_SECONDS) is not None for process in self.processes)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Starts]:
    made = Starts()
    monkeypatch.setattr(ray, "init", made.init)
    monkeypatch.setattr(ray, "shutdown", made.shutdown)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_everything_in_a_cluster_is_closed_to_others_and_open_again_afterwards(starts: Starts) -> None:
    starts.outcomes = [None, None]
    before, tokens = dict(os.environ), []
    for _ in range(2):
        with own_cluster.own_cluster(SIZE, say=print):
            assert is_token_auth_enabled() and not ray_constants.ENABLE_RAY_CLUSTER
            assert services.get_node_ip_address() == "127.0.0.1"
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            assert {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP"} <= os.environ.keys()
        assert dict(os.environ) == before
        assert not is_token_auth_enabled() and ray_constants.ENABLE_RAY_CLUSTER
    assert len(set(tokens)) == 2 and all(len(token) == 64 for token in tokens)
    assert starts.all_gone()


def test_a_start_that_timed_out_is_tried_again_with_more_time_and_without_what_the_first_left(starts: Starts) -> None:
    starts.outcomes = [Exception(TIMED_OUT), None]
    said: list[str] = []
    with own_cluster.own_cluster(SIZE, say=said.append):
        first, second = (process.pid for process in starts.processes)
        assert not psutil.pid_exists(first)
        assert psutil.pid_exists(second)
    (words,) = said
    assert words.startswith(
        "Ray did not start within 0 s: The current node timed out during startup. This could happen"
    )
    assert words.endswith("It is tried again with 120 s")
    assert starts.all_gone()


def test_a_third_time_out_is_an_error_of_one_line(starts: Starts) -> None:
    starts.outcomes = [Exception(TIMED_OUT)] * 2 + [
        RuntimeError("Failed to start GCS.\n Last 0 lines of error files:\n.")
    ]
    with (
        pytest.raises(RayNotStarted, match=r"^Ray did not start within 0 s: Failed to start GCS\. Last .*memory$"),
        own_cluster.own_cluster(SIZE, say=lambda line: None),
    ):
        pass
    assert starts.all_gone() and starts.shut_down == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_start_is_taken_back_and_not_tried_again(starts: Starts, error: BaseException) -> None:
    """Half a connection that the interpreter's end finds is a crash in Ray."""
    starts.outcomes = [error]
    with pytest.raises(type(error)), own_cluster.own_cluster(SIZE, say=print):
        pass
    assert len(starts.processes) == starts.shut_down == 1
    assert starts.all_gone()


def test_ray_may_take_longer_than_its_own_limit_to_know_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"node": "here"}])

    def get_node(address: str, node: str) -> object:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(own_cluster, "_has_raylet", lambda: True)
    with own_cluster._patient(HANG_SECONDS):
        assert services.get_node("address", "node") == {"node": "here"}
    assert services.get_node is get_node


def test_a_raylet_that_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node(address: str, node: str) -> object:
        raise RuntimeError("not yet")

    monkeypatch.setattr(services, "get_node", get_node)
    with own_cluster._patient(HANG_SECONDS), pytest.raises(own_cluster._RayletEnded, match="its raylet ended"):
        services.get_node("address", "node")


def test_only_processes_of_the_cluster_are_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1e6)"]
    mine, other = (
        subprocess.Popen(command, env={**os.environ, MARK: str(folder)}, stdout=subprocess.PIPE)
        for folder in (tmp_path, tmp_path / "other")
    )
    try:
        for process in (mine, other):
            assert process.stdout is not None
            process.stdout.readline()
        own_cluster.end_processes(tmp_path)
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.communicate()


def test_the_ends_of_ray_s_logs_are_kept_when_a_run_fails(
    starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_cluster, "KEPT_BYTES", 4)
    starts.outcomes = [None]
    said: list[str] = []
    logs = tmp_path / "ray_logs"
    with pytest.raises(ZeroDivisionError), own_cluster.own_cluster(SIZE, say=said.append, logs=logs):
        session = Path(os.environ[MARK]) / "ray" / "session_2026" / "logs"
        session.mkdir(parents=True)
        (session / "raylet.err").write_text("the beginning and the end")
        (session / "gcs.err").write_text("")
        raise ZeroDivisionError
    assert {path.name: path.read_text() for path in logs.iterdir()} == {"raylet.err": " end"}
    assert said == [f"Ray's logs are kept in {logs}"]
    assert not session.exists()


@pytest.mark.parametrize(
    ("token", "addresses", "said"),
    [
        (True, ["127.0.0.1"], None),
        (False, ["127.0.0.1"], "it asks for no token (RAY_AUTH_MODE=token); see"),
        (True, ["10.0.0.7", "10.0.0.8"], "its ports are open on every interface of 10.0.0.7, 10.0.0.8; see"),
        (False, ["10.0.0.7"], "it asks for no token (RAY_AUTH_MODE=token); its ports are open on every interface of 10.0.0.7; see"),
    ],
)  # fmt: skip
def test_what_a_joined_cluster_lacks_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, token: bool, addresses: list[str], said: str | None
) -> None:
    nodes = [{"NodeManagerAddress": address, "Alive": True} for address in addresses]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"NodeManagerAddress": "10.0.0.9", "Alive": False}])
    monkeypatch.setattr(cluster, "is_token_auth_enabled", lambda: token)
    lines = list(cluster.open_doors("head:6379"))
    assert len(lines) == (said is not None)
    assert not said or said in lines[0]
