"""A command that is stopped says so in one line, by its exit status too, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from patience import HANG_SECONDS
from tiny_model import CHARACTERS, make_tiny_tokenizer

from dapo_openrlhf import stopping
from dapo_openrlhf.__main__ import COMMANDS, main

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]

HANGING = """
import os, time
with open("began", "w") as pipe:
    pipe.write(f"{os.getpid()}\\n")
while True:
    time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def nothing_is_ignored() -> Iterator[None]:
    """These tests may be run under nohup, or in the background of a shell, which ignore signals for all they start."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_the_command_ends_where_it_is_and_cleans_up(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = []

    def work(options: object, rest: object) -> int:
        try:
            os.kill(os.getpid(), number)
            return 0
        finally:
            cleaned.append(number)

    monkeypatch.setitem(COMMANDS, "trace", work)
    assert main(["trace", "run"]) == 128 + number
    assert cleaned == [number]
    assert capsys.readouterr().err == f"stopped by {number.name}: {stopping.NOTHING_KEPT}\n"


def test_a_handler_that_a_library_installs_is_overruled() -> None:
    with stopping.handled():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
        stopping.reinstall()
        with pytest.raises(stopping.Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 143


def test_a_listener_gets_signals_in_their_place() -> None:
    heard: list[signal.Signals] = []
    with stopping.handled():
        with stopping.listening(heard.append):
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)  # would kill a process that does not look at it
        with pytest.raises(stopping.Stopped):
            os.kill(os.getpid(), signal.SIGHUP)
    assert heard == [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def test_what_is_ignored_stays_ignored() -> None:
    """nohup ignores SIGHUP, and a shell without job control SIGINT in what runs in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.handled():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def begin(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a command whose reward hangs, in a process group of its own; returns once the reward's process does."""
    os.mkfifo(folder / "began")
    process = subprocess.Popen(
        [sys.executable, "-m", "dapo_openrlhf", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, psutil.Process(int((folder / "began").read_text()))


def check_end(
    process: subprocess.Popen[str],
    reward: psutil.Process,
    number: signal.Signals,
    words: str = stopping.NOTHING_KEPT,
) -> None:
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, errors) == (128 + number, f"stopped by {number.name}: {words}\n")
    reward.wait(HANG_SECONDS)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("whom", ["command", "group"])
def test_verify(tmp_path: Path, number: signal.Signals, whom: str) -> None:
    """To the command alone, as kill does, and to its whole group, as Ctrl-C does."""
    (tmp_path / "reward.py").write_text(f"def reward_func(queries, prompts, labels):\n    exec({HANGING!r})\n")
    (tmp_path / "r.jsonl").write_text(json.dumps({"response": "1", "answer": "1"}) + "\n")
    process, reward = begin(tmp_path, "verify", "r.jsonl", "--reward", "reward.py")
    (os.kill if whom == "command" else os.killpg)(process.pid, number)
    check_end(process, reward, number)


def test_train_while_a_reward_is_loaded(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "vocab_size": len(CHARACTERS), "eos_token_id": 1})
    )
    (tmp_path / "reward.py").write_text(HANGING)
    (tmp_path / "p.jsonl").write_text('{"input": "1+1=", "label": "2"}\n')
    settings = ["--device", "cpu", "--ds.attn_implementation", "sdpa", "--ds.param_dtype", "fp32"]
    settings += ["--rollout.max_new_tokens", "8", "--data.max_len", "16", "--reward.overlong_buffer_len", "0"]
    (tmp_path / "c.yaml").write_text(
        "actor: {model_name_or_path: ./model}\ndata: {prompt_dataset: p.jsonl}\nreward: {remote_url: reward.py}\n"
    )
    process, reward = begin(tmp_path, "train", "--config", "c.yaml", *settings)
    process.send_signal(signal.SIGTERM)
    check_end(process, reward, signal.SIGTERM, "nothing was trained yet")
    assert not (tmp_path / "runs").exists()
