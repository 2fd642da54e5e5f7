"""A live run on Ray, vLLM and DeepSpeed that nobody else can enter, and whose end is clean when Ray itself dies."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from patience import HANG_SECONDS
from tiny_run import make_config

from dapo_openrlhf.backend.run.own_cluster import MARK, processes_of
from dapo_openrlhf.config.loading import dump_config
from dapo_openrlhf.pipeline.event_log import read
from dapo_openrlhf.pipeline.events import Checkpointed

pytestmark = pytest.mark.real

ENTER = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_put(b"key", b"value", True, b"")
except AuthenticationError:
    print("refused")
"""


def listening(processes: list[psutil.Process]) -> dict[tuple[str, int], str]:
    """Addresses at which the processes listen, and which of them does."""
    return {
        (place.laddr.ip, place.laddr.port): process.name()
        for process in processes
        for place in process.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
    }


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return parsed.is_loopback or bool(getattr(parsed, "ipv4_mapped", None) and parsed.ipv4_mapped.is_loopback)  # type: ignore[union-attr]  # of IPv6 only


def assert_closed(run: psutil.Process) -> Path:
    """Nothing of a run listens elsewhere than at the loopback interface, or can be entered; returns Ray's folder."""
    family = [run, *run.children(recursive=True)]
    doors = listening(family)
    assert {"gcs_server", "raylet", "ray::PolicyActor", "ray::EngineActor"} <= {
        name.split(".")[0] for name in doors.values()
    }
    assert [door for door in doors if not is_loopback(door[0])] == []
    (folder,) = {Path(found) for process in family[1:] if (found := process.environ().get(MARK))}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (gcs,) = [door for door, name in doors.items() if name == "gcs_server"]
    stranger = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"} | {
        "RAY_AUTH_MODE": "disabled"
    }
    entered = subprocess.run(
        [sys.executable, "-c", ENTER, f"127.0.0.1:{gcs[1]}"],
        env=stranger, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert entered.stdout == "refused\n", entered.stderr[-2000:]
    return folder


@pytest.mark.parametrize("dead", ["raylet", "gcs_server"])
def test_a_run_is_closed_to_others_and_ends_in_one_line_when_ray_dies(tmp_path: Path, dead: str) -> None:
    ranks = {"actor.num_gpus_per_node": 2} if dead == "raylet" else {}
    config = make_config(tmp_path, **{"train.max_steps": 100_000, "ckpt.save_steps": 1}, **ranks)
    (tmp_path / "c.yaml").write_text(dump_config(config))
    run = tmp_path / "runs" / "dapo"
    process = subprocess.Popen(
        [sys.executable, "-m", "dapo_openrlhf", "train", "--config", "c.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = run / "events.jsonl"
    while not (log.exists() and any(isinstance(logged.event, Checkpointed) for logged in read(log))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    folder = assert_closed(psutil.Process(process.pid))
    (vital,) = [member for member in family if member.name() == dead]
    os.kill(vital.pid, signal.SIGKILL)
    output, errors = process.communicate(timeout=HANG_SECONDS)
    words = [line for line in errors.splitlines() if "RayDied" in line]
    assert process.returncode == 1, errors
    assert len(words) == 1 and f"killed by signal 9 (process {vital.pid})" in words[0]
    assert "Traceback" not in errors and "*** " not in errors, errors
    assert "Raylet is terminated" not in output
    assert (run / "curves.png").stat().st_size > 0
    assert not folder.exists() and not processes_of(folder)
    _, alive = psutil.wait_procs(family, timeout=HANG_SECONDS)
    assert not alive
