"""Which cluster a run joins, where Ray's files go, and how its processes are started, without Ray running."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc import server as grpc_server
from patience import HANG_SECONDS

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run import ray_address, ray_folder
from dapo_openrlhf.backend.run.ray_address import resolve
from dapo_openrlhf.config.errors import ConfigError


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of something that answers as Ray does."""
    monkeypatch.setattr(ray_address, "JOIN_SECONDS", HANG_SECONDS)
    with ThreadPoolExecutor(1) as workers:
        server = grpc_server(workers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of something that listens, and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def last_started(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what `ray start` leaves of a cluster; none is running."""
    from ray._private import services

    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda host: host)
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)


def test_a_cluster_that_answers_is_joined(cluster: str) -> None:
    assert resolve(cluster) == cluster
    assert resolve(f" {cluster}\n") == cluster
    assert resolve(f"ray://{cluster}") == f"ray://{cluster}"


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_without_an_address_a_cluster_is_started_here(address: str) -> None:
    assert resolve(address) is None


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nothing_listens_is_refused_at_once(nobody: str, form: str) -> None:
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS: no Ray cluster answers at .* \(.*refused.*unset RAY_ADDRESS"):
        resolve(form.format(nobody))


def test_what_does_not_speak_as_ray_does_is_refused(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "JOIN_SECONDS", 1.0)
    with pytest.raises(ConfigError, match="something listens, but not as Ray does"):
        resolve(silent)


def test_auto_leads_to_the_cluster_that_was_started_last(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_started(cluster, tmp_path, monkeypatch)
    assert resolve("auto") == cluster


def test_auto_with_a_stale_file_is_refused_at_once(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_started(nobody, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS auto: the cluster that ran here last is at {nobody}, and no"):
        resolve("auto")


def test_auto_without_any_cluster_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last_started("", tmp_path, monkeypatch)
    (tmp_path / "ray" / "ray_current_cluster").unlink()
    with pytest.raises(ConfigError, match="RAY_ADDRESS auto: no Ray cluster runs on this machine"):
        resolve("auto")


def test_auto_of_an_option_is_not_the_address_of_the_environment(
    cluster: str, nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_started(cluster, tmp_path, monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    assert resolve("auto", name="--address") == cluster


@pytest.mark.parametrize(("recorded", "found"), [(1, 1), (0, 0), (None, "2 Ray clusters run .* known .*: {}, {}")])
def test_auto_with_two_clusters_is_the_later_one_or_refused(
    recorded: int | None, found: int | str, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    both = sorted([cluster, "192.0.2.7:6379"])
    last_started("10.0.0.1:1" if recorded is None else both[recorded], tmp_path, monkeypatch)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset(both))
    monkeypatch.setattr(ray_address, "ask", lambda *_: None)
    if isinstance(found, str):
        with pytest.raises(ConfigError, match=found.format(*both)):
            resolve("auto")
    else:
        assert resolve("auto") == both[found]


ASKS = "from dapo_openrlhf.backend.run.ray_address import asked_address; print(asked_address())"


@pytest.mark.parametrize(
    ("given", "in_job", "found"),
    [
        ("10.0.0.1:6379", True, "10.0.0.2:6380"),  # of whichever cluster was started last
        ("10.0.0.1:6379", False, "10.0.0.1:6379"),
        ("local", True, ""),
        (" ", True, ""),
    ],
)
def test_a_job_joins_the_cluster_whose_raylet_has_started_it(
    given: str, in_job: bool, found: str, tmp_path: Path
) -> None:
    """Ray tells it the one that was started last on the machine."""
    raylet = tmp_path / "raylet"
    raylet.symlink_to("/bin/sh")  # the process has this name
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": given} | ({ray_address.OF_JOB: "{}"} if in_job else {})
    inner = f"{sys.executable} -c '{ASKS}'; true"
    told = subprocess.run(
        [raylet, "-c", inner, "raylet", "--gcs-address=10.0.0.2:6380"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{found}\n"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "is a dashboard; .* dapo-openrlhf submit --address http://127.0.0.1:8265"),
        ("head", "head is no address"),
        ("head:", "no address"),
        ("head:port", "no address"),
        (":6379", "no address"),
        ("head:99999", "no address"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
    ],
)
def test_what_is_no_address_is_refused_by_name(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(address)


# ------------------------------------------------------------------------------------------------------- folder


@pytest.fixture
def others(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand-ins for the system's short folders, and neither TMPDIR nor RAY_TMPDIR set."""
    found = [tmp_path_factory.mktemp("r"), tmp_path_factory.mktemp("s")]
    monkeypatch.setattr(ray_folder, "_others", lambda: tuple(found))
    monkeypatch.setattr(ray_folder, "LONGEST", 1000)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    return found


def test_the_longest_place_leaves_room_for_the_longest_socket() -> None:
    assert len(os.fsencode("/" + "t" * (ray_folder.LONGEST - 1) + ray_folder.UNDER_IT)) == 107


def test_ray_s_files_go_where_temporary_files_go(
    others: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    said: list[str] = []
    with ray_folder.private_folder(said.append) as folder:
        assert folder.parent == tmp_path
    monkeypatch.setenv("RAY_TMPDIR", str(others[0]))
    with ray_folder.private_folder(said.append) as folder:
        assert folder.parent == others[0]
    assert said == []


def test_nobody_else_can_enter_the_folder_and_it_goes_with_all_that_is_in_it(
    others: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = os.umask(0)
    try:
        with pytest.raises(KeyboardInterrupt), ray_folder.private_folder(print) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "ray").mkdir()
            (folder / "ray" / "log").write_text("a log")
            raise KeyboardInterrupt
    finally:
        os.umask(before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tmpdir", "why"),
    [
        ("long", "bytes, and 1000 are the most"),
        ("missing", "no such folder"),
        ("read-only", "/proc cannot hold"),
        ("relative", "absolute"),
    ],
)
def test_a_tmpdir_that_cannot_hold_sockets_is_said_and_a_short_one_taken(
    others: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmpdir: str, why: str
) -> None:
    folders = {
        "long": tmp_path / ("ü" * 500),
        "missing": tmp_path / "no",
        "read-only": Path("/proc"),
        "relative": Path("x"),
    }
    monkeypatch.setenv("TMPDIR", str(folders[tmpdir]))
    said: list[str] = []
    with ray_folder.private_folder(said.append) as folder:
        assert folder.parent == others[0]
    assert len(said) == 1 and why in said[0] and f"they go to {others[0]}" in said[0]
    others[0].rmdir()
    others[0].write_text("in the way")
    with ray_folder.private_folder(said.append) as folder:
        assert folder.parent == others[1]


def test_a_ray_tmpdir_that_cannot_hold_sockets_is_refused(
    others: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "no"))
    with (
        pytest.raises(ConfigError, match=r"RAY_TMPDIR: .* no such folder; name another folder"),
        ray_folder.private_folder(print),
    ):
        pass


# -------------------------------------------------------------------------------------------------- interpreter


@pytest.mark.parametrize(
    ("executable", "told"),
    [("/a/.venv/bin/python", None), ("/a b/.venv/bin/python", "'/a b/.venv/bin/python'"), ("/ä'x/p", "'/ä'\"'\"'x/p'")],
)
def test_an_interpreter_that_a_shell_would_take_apart_is_quoted(
    monkeypatch: pytest.MonkeyPatch, executable: str, told: str | None
) -> None:
    """Without a need for it nothing is said: on a cluster each machine has an interpreter of its own."""
    monkeypatch.setattr(sys, "executable", executable)
    device = Device(kind="cpu", threads=1)
    assert device.runtime_env().get("py_executable") == told
    assert device.runtime_env()["env_vars"] == dict(device.environment())


PROGRAM = """
import sys
import ray
from dapo_openrlhf.backend.device import Device

class Where:
    def executable(self):
        import sys
        return sys.executable

environment = Device(kind="cpu", threads=1).runtime_env()
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
print("found", ray.get(ray.remote(Where).options(runtime_env=environment).remote().executable.remote()))
"""


@pytest.mark.real
def test_actors_start_from_a_path_with_a_blank_and_an_umlaut(tmp_path: Path) -> None:
    folder = tmp_path / "blänk ünd" / "dapo x"
    venv.create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    paths = [sysconfig.get_path("purelib"), str(Path(__file__).parents[2])]
    (site_packages / "here.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    python = folder / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [python, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert f"found {python}" in done.stdout, done.stderr[-2000:]
