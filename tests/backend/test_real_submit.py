"""`dapo-openrlhf submit` on a real Ray cluster, started and stopped by its own handle."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from patience import HANG_SECONDS
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


STEPS = 6
KILLS_ONCE = """
import pathlib, signal
import psutil
HERE = pathlib.Path(__file__).parent

def kill_once():
    # Kill the training after its first checkpoint: the second waits for that, and groups of the last steps for the second.
    told = HERE / "killed"
    if not told.exists() and [*HERE.glob("runs/job/checkpoints/step-*/manifest.json")]:
        told.touch()
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = process.info["cmdline"] or []
            if words[2:5] == ["-m", "dapo_openrlhf", "train"] and process.info["cwd"] == str(HERE):
                process.send_signal(signal.SIGKILL)
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of the dashboard of a cluster with four CPUs that lives as long as the tests of this module."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
    try:
        for _ in range(5):  # another process may take a free port before Ray does
            port = _free_port()
            cluster, address = _start_cluster(port, folder), f"http://127.0.0.1:{port}"
            try:
                if _answers(cluster, f"{address}/api/version"):
                    with _later_cluster(Path(folder)):
                        yield address
                    return
            finally:
                cluster.terminate()
                cluster.wait(timeout=HANG_SECONDS)
        raise AssertionError("no cluster starts")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _later_cluster(folder: Path) -> Iterator[None]:
    """As far as Ray can tell, a second cluster was started later on this machine; Ray sends jobs' processes to that."""
    raylet = folder / "raylet"
    raylet.symlink_to("/bin/sh")
    later = subprocess.Popen([raylet, "-c", "read line", "raylet", "--gcs-address=127.0.0.1:1"], stdin=subprocess.PIPE)
    (folder / "ray_current_cluster").write_text("127.0.0.1:1")
    try:
        yield
    finally:
        later.communicate(b"\n")


def _start_cluster(port: int, folder: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=4"]
    command += ["--node-ip-address=127.0.0.1", f"--port={_free_port()}", "--include-dashboard=true"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--object-store-memory=200000000"]
    command += [
        f"--temp-dir={folder}",
        f"--dashboard-agent-listen-port={_free_port()}",
    ]  # another cluster may have the usual one
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _answers(cluster: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until the dashboard answers; False when the cluster has ended without."""
    deadline = time.monotonic() + HANG_SECONDS
    while cluster.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=HANG_SECONDS) as reply:
                return "ray_version" in json.load(reply)
        except ValueError:
            return False  # another process's server took the port first
        except (URLError, ConnectionError):
            time.sleep(0.5)
    return False


def _submit(address: str, config: Path, *settings: str, **exported: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dapo_openrlhf", "submit", "--address", address, "--config", str(config), *settings],
        cwd=config.parent,
        env={**os.environ, "HF_TOKEN": "hf_planted", "DATABASE_PASSWORD": "planted", **exported},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose reward is a user's own function: right when the response has an even number of a's."""
    folder = tmp_path_factory.mktemp("job")
    make_tiny_model(folder / "model", tied=True)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"input": f"{i}+1=", "label": "x"}) + "\n" for i in range(9))
    )
    (folder / "reward.py").write_text(
        KILLS_ONCE + "\ndef reward_func(queries, prompts, labels, **kwargs):\n    kill_once()\n"
        "    assert queries[0].startswith(prompts[0]) and labels == ['x']\n"
        "    right = queries[0].count('a') % 2 == 0\n"
        "    return {'rewards': 1.0 if right else -1.0, 'scores': float(right), 'extra_logs': {}}\n"
    )
    settings = {
        "device": "cpu",
        "run": {"name": "job"},
        "actor": {"model_name_or_path": "model", "adam": {"lr": 1e-3}},
        "ds": {"param_dtype": "fp32", "attn_implementation": "sdpa"},
        "rollout": {"batch_size": 2, "n_samples_per_prompt": 4, "max_new_tokens": 24},
        "train": {"batch_size": 8, "max_steps": STEPS},
        "reward": {"remote_url": "reward.py"},
        "data": {"prompt_dataset": "prompts.jsonl", "max_len": 64},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_job_whose_training_is_killed_goes_on_in_its_folder(dashboard: str, config: Path) -> None:
    """By the cluster's plain host:port; another cluster in the environment, or started later on the machine, is not asked."""
    address = dashboard.removeprefix("http://")
    elsewhere = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1", "NCCL_DEBUG": "WARN"}
    retried = ("--retries", "2", "--ckpt.save_steps", "1")
    result = _submit(
        address, config, "--train.seed", "7", *retried, "--env", "MINE=1", "--metadata", "who=me", **elsewhere
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert "checks: " in result.stdout
    assert result.stdout.endswith(": succeeded\n") and result.stdout.count("engines and trainer ready") == 2
    assert result.stdout.count("ended with status 137; it is begun again in 5 s (1 of 2 retries)") == 1
    assert result.stdout.count("resuming after ") == 1
    assert sorted(folder.name for folder in (config.parent / "runs").iterdir()) == ["job", "latest"]
    run = config.parent / "runs" / "job"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["lives"]) == (STEPS, 2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(STEPS)], "one curve"
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["seed"] == 7
    with urlopen(f"{dashboard}/api/jobs/", timeout=HANG_SECONDS) as reply:
        jobs = reply.read().decode()
    (job,) = json.loads(jobs)
    assert job["runtime_env"]["env_vars"].items() >= {"NCCL_DEBUG": "WARN", "MINE": "1"}.items()
    assert job["metadata"]["who"] == "me" and job["metadata"]["dapo.step"] == str(STEPS)
    assert "planted" not in jobs + result.stdout
    listed = _of_jobs("jobs", "--address", address)
    assert listed.returncode == 0 and f"{STEPS}/{STEPS}" in listed.stdout and listed.stdout.rstrip().endswith(str(run))
    told = _of_jobs("status", job["submission_id"][:9], "--json", "--address", address)
    assert json.loads(told.stdout)["exit_code"] == 0


def test_a_job_too_large_for_the_cluster_fails_before_anything_starts(dashboard: str, config: Path) -> None:
    """It is not waited for: its id is alone on standard output, and its log can be followed."""
    accepted = _submit(dashboard, config, "--no-wait", "--retries", "3", "--vllm.num_engines", "9")
    assert accepted.returncode == 0 and len(accepted.stdout.split()) == 1
    followed = _of_jobs("logs", "--follow", accepted.stdout.strip(), "--address", dashboard)
    assert followed.returncode == 1
    words = " ".join(followed.stdout.split())
    assert words.count("vllm.num_engines 9") == 1 and "1 fail" in words and "starting Ray" not in words
    stopped = _of_jobs("stop", accepted.stdout.strip(), "--address", dashboard)
    assert stopped.returncode == 0 and "has ended already: failed" in stopped.stdout


def _of_jobs(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dapo_openrlhf", *arguments], capture_output=True, text=True, timeout=HANG_SECONDS
    )


def test_no_dashboard_is_said_at_once(config: Path) -> None:
    result = _submit(f"http://127.0.0.1:{_free_port()}", config)
    assert result.returncode == 2
    assert "no Ray dashboard answers" in result.stderr


class _NoDashboard(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")


def test_a_server_that_is_no_dashboard_is_named(config: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _NoDashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = _submit(f"http://127.0.0.1:{server.server_address[1]}", config)
        server.shutdown()
    assert result.returncode == 2
    assert "no Ray dashboard" in result.stderr and "Traceback" not in result.stderr
