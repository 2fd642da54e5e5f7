"""What `submit` refuses before anything is uploaded, and which cluster it means."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run.jobs import client, dashboard
from dapo_openrlhf.backend.run.jobs.dashboard import Given, dashboard_of, given_address
from dapo_openrlhf.backend.run.jobs.sight import refuse_unseen
from dapo_openrlhf.backend.run.jobs.upload import MOST_BYTES, upload_of
from dapo_openrlhf.cli.options import make_parser
from dapo_openrlhf.cli.submit import options_checked, pairs, runtime_env_of
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config

CONFIG = """
device: cpu
actor: {model_name_or_path: model}
ds: {attn_implementation: sdpa, param_dtype: fp32}
rollout: {batch_size: 2, n_samples_per_prompt: 4, max_new_tokens: 8}
train: {batch_size: 8}
data: {prompt_dataset: data/p.jsonl, max_len: 32}
reward: {remote_url: [rule, reward.py]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has all that its configuration names."""
    for name in dashboard.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("model/config.json", "data/p.jsonl", "reward.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


def refusal(folder: Path, resume: str | None = None, **settings: object) -> str:
    config = load_config(folder / "run.yaml", {"run.dir": "/shared/runs", **settings})
    with pytest.raises(ConfigError) as caught:
        refuse_unseen(config, resume, upload_of(folder))
    return str(caught.value)


def test_what_is_in_the_upload_or_on_the_cluster_is_seen(folder: Path) -> None:
    upload = upload_of(folder)
    for settings in (
        {},
        {"actor.model_name_or_path": "Qwen/Qwen2.5-7B"},
        {"actor.model_name_or_path": "/models/a", "data.prompt_dataset": "/data/p.jsonl"},
    ):
        refuse_unseen(load_config(folder / "run.yaml", {"run.dir": "/shared/runs", **settings}), None, upload)
    refuse_unseen(load_config(folder / "run.yaml", {"run.dir": "/r", "actor.model_name_or_path": "x/y/z"}), None, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"run.dir": "runs"}, "run.dir: runs is relative"),
        ({"data.prompt_dataset": "../p.jsonl"}, "data.prompt_dataset: ../p.jsonl leads out of the working directory"),
        ({"data.prompt_dataset": "data/q.jsonl"}, "data.prompt_dataset: data/q.jsonl is not in the working directory"),
        ({"actor.model_name_or_path": ".cache/m"}, "actor.model_name_or_path: .cache/m is not uploaded"),
        ({"actor.model_name_or_path": "a/b/c"}, "actor.model_name_or_path: a/b/c is not in the working directory"),
        ({"reward.remote_url": ["rule", "other.py"]}, "reward.remote_url: other.py is not in the working directory"),
        ({"eval.dataset": "left/out.jsonl"}, "eval.dataset: left/out.jsonl is not uploaded"),
    ],
)
def test_what_a_job_would_not_find_is_named(folder: Path, settings: dict[str, object], words: str) -> None:
    Path(".cache/m").mkdir(parents=True)
    Path(".cache/m/config.json").write_text("{}")
    Path("left").mkdir()
    Path("left/out.jsonl").write_text("{}")
    Path(".gitignore").write_text("left/\n")
    assert words in refusal(folder, **settings)


def test_a_run_to_go_on_with_needs_its_path_there(folder: Path) -> None:
    assert "--resume: runs/a is relative" in refusal(folder, resume="runs/a")


def test_gitignore_and_our_own_folders_stay_at_home(folder: Path) -> None:
    for name in ("runs/a/b", "big/c", "kept/d", ".git/e", "kept/.venv/f"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    Path(".gitignore").write_text("big\n")
    sizes = upload_of(folder, ["*.py"]).sizes
    assert Path("kept/d") in sizes and Path("data/p.jsonl") in sizes
    assert not {"runs/a/b", "big/c", ".git/e", "kept/.venv/f", "reward.py"} & set(map(str, sizes))


def test_too_large_an_upload_names_the_ten_largest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        with Path(f"part-{number:02}").open("wb") as file:
            file.truncate(MOST_BYTES // 10 + number)
    assert main(["submit", "--config", "run.yaml", "--working-dir", ".", "--run.dir", "/r"]) == 2
    told = capsys.readouterr().err
    named = [line.split()[-1] for line in told.splitlines()[1:]]
    assert named == [f"part-{number:02}" for number in range(11, 1, -1)] and "126 MB to upload" in told
    with pytest.raises(ConfigError, match="there is no folder"):
        upload_of(folder / "nowhere")


def test_an_explicit_address_wins_over_the_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_address(None) == Given(text="http://127.0.0.1:8265", source="--address")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert given_address(None).source == "--address"
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert given_address(None) == Given(text="b:2", source="RAY_ADDRESS")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://c:3")
    assert given_address(None) == Given(text="http://c:3", source="RAY_API_SERVER_ADDRESS")
    assert given_address("http://a:1") == Given(text="http://a:1", source="--address")


class _Dashboard(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/api/version" and self.headers.get("X-Name") == "value"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"ray_version": "2"} if known else {}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    """host:port of a dashboard that wants a header."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_dashboard_is_found_by_either_form(answering: str) -> None:
    for text in (answering, f"http://{answering}", f"http://user:pw@{answering}/"):
        assert dashboard_of(Given(text=text, source="--address"), {"X-Name": "value"}).endswith(answering)
    with pytest.raises(ConfigError, match="no Ray dashboard"):
        dashboard_of(Given(text=f"http://u:secret@{answering}", source="--address"), {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ray://head:10001", "give http://host:8265"),
        ("http://127.0.0.1:1", "no Ray dashboard answers"),
        ("127.0.0.1:1", "no Ray cluster and no dashboard answers at 127.0.0.1:1"),
        ("head", "write http://host:port"),
        ("head:8265/x", "write http://host:port"),
        ("head:99999", "write http://host:port"),
        ("http://u:secret@127.0.0.1:1", "http://...@127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("source", ["--address", "RAY_ADDRESS"])
def test_other_addresses_are_refused_in_a_line(
    folder: Path,
    text: str,
    words: str,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if source != "--address":
        monkeypatch.setenv(source, text)
    assert main(["jobs", *(["--address", text] if source == "--address" else [])]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"{source}: ") and words in told and told.count("\n") == 1 and "secret" not in told


def test_a_dashboard_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says its version, and nothing more: Ray's own client would wait for ever."""
    monkeypatch.setattr(client, "REPLY_SECONDS", 0.3)
    over = threading.Event()

    class Falling(_Dashboard):
        def do_GET(self) -> None:
            if self.path != "/api/version":
                over.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": ray.__version__}).encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Falling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            jobs = client.Jobs(f"http://127.0.0.1:{server.server_address[1]}", {})
            for ask in (jobs.all, lambda: jobs.log("a"), lambda: jobs.state("a")):
                with pytest.raises(client.LOST, match="timed out"):
                    ask()
        finally:
            over.set()
            server.shutdown()


def test_a_silent_dashboard_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray dashboard answers"):
            dashboard_of(Given(text=address, source="--address"), {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--retries", "-1"], "--retries: -1"),
        (["--entrypoint-num-cpus", "nan"], "--entrypoint-num-cpus: nan"),
        (["--submission-id", "a/b"], "--submission-id: 'a/b'"),
        (["--submission-id", "a b"], "--submission-id: 'a b'"),
        (["--submission-id", "a?b"], "--submission-id: 'a?b'"),
        (["--submission-id", ""], "--submission-id: ''"),
        (["--working-dir", ""], "--working-dir: no folder is given"),
        (["--entrypoint-resources", "[1]"], "--entrypoint-resources: not numbers by name"),
        (["--entrypoint-resources", '{"a": "1"}'], "--entrypoint-resources: not numbers by name"),
        (["--runtime-env-json", '{"env_vars": {"A": null}}'], "env_vars has None for A"),
        (["--env", "NAME"], "--env: 'NAME' is not NAME=VALUE"),
        (["--runtime-env-json", "{"], "--runtime-env-json: '{' is not JSON"),
        (["--runtime-env-json", "[]"], "not a mapping"),
        (["--runtime-env", "nowhere.yaml"], "--runtime-env: nowhere.yaml cannot be read"),
        (["--headers", "x"], "--headers: not JSON"),
        (["--runtime-env-json", '{"working_dir": "."}', "--working-dir", "."], "leave one of them out"),
    ],
)
def test_options_that_no_job_can_have_are_refused(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--config", "run.yaml", "--run.dir", "/r", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_variables_and_metadata_are_pairs(folder: Path) -> None:
    assert pairs(["A=b=c", "D="], "--env") == {"A": "b=c", "D": ""}
    options = make_parser().parse_args(["submit", "--runtime-env-json", '{"env_vars": {"N": 1}, "pip": ["x"]}'])
    options_checked(options)
    assert runtime_env_of(options) == {"env_vars": {"N": "1"}, "pip": ["x"]}
    assert os.environ.get("N") is None
