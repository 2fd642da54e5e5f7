"""A command that is stopped says so in one line, by its exit status too, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from event_files import write_events
from patience import HANG_SECONDS
from tiny_model import CHARACTERS, make_looks, make_tiny_tokenizer

from dapo_openrlhf import stopping
from dapo_openrlhf.__main__ import COMMANDS, main
from dapo_openrlhf.pipeline.events import GroupDispatched, RunStarted
from dapo_openrlhf.types import PolicyVersion

pytestmark = pytest.mark.long

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


def test_a_lock_that_it_leaves_released_hides_it_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where it comes in the middle of ``threading.Condition.wait``, whose lock is then released twice."""

    def wait(options: object, rest: object) -> int:
        with lock:
            lock.release()
            signal.raise_signal(signal.SIGTERM)
        raise AssertionError("unreachable")

    lock = threading.Lock()
    monkeypatch.setitem(COMMANDS, "trace", wait)
    assert main(["trace", "run"]) == 143
    assert capsys.readouterr().err == f"stopped by SIGTERM: {stopping.NOTHING_KEPT}\n"


def test_an_error_of_such_a_kind_without_a_signal_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object, rest: object) -> int:
        threading.Lock().release()
        return 0

    monkeypatch.setitem(COMMANDS, "trace", fail)
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        main(["trace", "run"])


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_does_not_end_a_wait_is_heard_nevertheless(number: signal.Signals) -> None:
    """As one does that comes in the moment before the wait: here another thread gets it, so the wait goes on."""
    reader, writer = os.pipe()
    hears = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), number))
    gives_up = threading.Timer(HANG_SECONDS, os.write, (writer, b"0"))
    gives_up.start()
    with stopping.handled(), pytest.raises(stopping.Stopped) as stopped:
        hears.start()
        os.read(reader, 1)
    gives_up.cancel()
    os.close(reader)
    os.close(writer)
    assert stopped.value.number == number


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


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def popen(folder: Path, *arguments: str, module: str = "dapo_openrlhf") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def begin(folder: Path, *arguments: str, module: str = "dapo_openrlhf") -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a command whose reward hangs, in a process group of its own; returns once the reward's process does."""
    os.mkfifo(folder / "began")
    process = popen(folder, *arguments, module=module)
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


def compare(folder: Path) -> list[str]:
    (folder / "b.jsonl").touch()
    return ["compare", "pipe", "b.jsonl"]


def checkpoint(folder: Path) -> list[str]:
    (folder / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    (folder / "pipe").rename(folder / "run" / "checkpoints" / "step-000001" / "manifest.json")
    (folder / "pipe").symlink_to("run/checkpoints/step-000001/manifest.json")
    return ["checkpoint", "run"]


def prepare(folder: Path) -> list[str]:
    (folder / "rows.jsonl").write_text("".join(f'{{"input": "{n}+1=", "label": "{n + 1}"}}\n' for n in range(MANY)))
    (folder / "pipe").rename(folder / "out.jsonl")
    (folder / "pipe").symlink_to("out.jsonl")
    return ["prepare", "rows.jsonl", "--template", "none", "--output", "out.jsonl"]


def trace(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    started = RunStarted(
        unix_time=0.0, engines=1, trainer_ranks=1, devices=2, max_staleness=1, batch_size=1, first_step=0
    )
    dispatched = [GroupDispatched(group=n, prompt=n, version=PolicyVersion(0), deadline=1) for n in range(MANY)]
    write_events(folder / "run" / "events.jsonl", [(0.0, started), *((1.0, event) for event in dispatched)])
    return ["trace", "run", "--output", "pipe"]


MANY = 5000
"""Rows that do not fit into a pipe at once."""


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize(("command", "reads"), [(compare, True), (checkpoint, True), (prepare, False), (trace, False)])
def test_while_it_waits_for_a_pipe(
    tmp_path: Path, number: signal.Signals, command: Callable[[Path], list[str]], reads: bool
) -> None:
    """Opening the other end of the pipe waits for the command, which then waits for what never comes, or is never read."""
    os.mkfifo(tmp_path / "pipe")
    process = popen(tmp_path, *command(tmp_path))
    before = sorted(path.name for path in tmp_path.iterdir())
    with (tmp_path / "pipe").open("wb" if reads else "rb", buffering=0):
        process.send_signal(number)
        _, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, errors) == (128 + number, f"stopped by {number.name}: {stopping.NOTHING_KEPT}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [["verify", "pipe"], ["compare", "pipe", "pipe"]])
def test_a_second_signal_ends_it_at_once_with_what_it_has_started(tmp_path: Path, arguments: list[str]) -> None:
    """Whether it comes while the first is being answered, or after; not the same one again, as ``timeout`` sends it."""
    os.mkfifo(tmp_path / "pipe")
    process = popen(tmp_path, *arguments)
    with (tmp_path / "pipe").open("wb", buffering=0):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        _, errors = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode in (143, 130)
    assert len(errors.splitlines()) in (1, 2) and "Traceback" not in errors


AT_THE_LAST_MOMENT = """
import os, signal, sys
from dapo_openrlhf import __main__, stopping
close = stopping._Handling.close
def close_and_be_asked_again(self):
    close(self)
    os.kill(os.getpid(), signal.SIGINT)
stopping._Handling.close = close_and_be_asked_again
__main__._run = lambda arguments: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(__main__.entry())
"""


def test_a_second_signal_after_the_command_s_end_costs_no_word() -> None:
    found = subprocess.run(
        [sys.executable, "-c", AT_THE_LAST_MOMENT], env=environment(), capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (130, f"stopped by SIGTERM: {stopping.NOTHING_KEPT}\n")


STUCK = """
import ctypes, os, signal, subprocess, sys
from dapo_openrlhf import stopping
with stopping.handled():
    child = subprocess.Popen(["sleep", "100000"])
    {block}
        ctypes.PyDLL(None).usleep(0)
        print(child.pid, flush=True)
        ctypes.CDLL(None).sleep(100000)
        while True:
            ctypes.CDLL(None).sleep(100000)
"""


@pytest.mark.parametrize(
    ("block", "sent", "words"),
    [
        ("if True:", [signal.SIGTERM, signal.SIGINT], "at once, as it was asked twice"),
        ("with stopping.nothing_to_lose('none'):", [signal.SIGHUP], "none"),
    ],
)
def test_in_foreign_code_too(block: str, sent: list[signal.Signals], words: str) -> None:
    """A library that blocks signals in the main thread stands for all that never come back to Python.

    Of two signals that wait at once the kernel delivers the one with the lower number first.
    """
    script = STUCK.format(block=block).replace(
        "ctypes.PyDLL(None).usleep(0)", "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    for number in sent:
        process.send_signal(number)
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, errors) in [(128 + number, f"stopped by {number.name}: {words}\n") for number in sent]
    child.wait(HANG_SECONDS)


SLOW = """
import os, psutil, signal, sys, time
from dapo_openrlhf import stopping
children = psutil.Process.children
psutil.Process.children = lambda *how, **more: time.sleep(1) or children(*how, **more)
with stopping.handled(), stopping.nothing_to_lose("none"):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        time.sleep(0.01)
"""


def test_a_process_says_once_that_it_ends() -> None:
    """The main thread and the one that hears signals both end it; the first of them takes its time."""
    result = subprocess.run(
        [sys.executable, "-c", SLOW], env=environment(), capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (143, "stopped by SIGTERM: none\n")


@pytest.mark.parametrize("number", ENDING)
def test_submit_before_the_dashboard_has_answered(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "c.yaml").write_text("actor: {model_name_or_path: ./model}\ndata: {prompt_dataset: p.jsonl}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = popen(tmp_path, "submit", "--config", "c.yaml", "--address", address)
        connection, _ = server.accept()
        with connection:
            process.send_signal(number)
            _, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, errors) == (128 + number, f"stopped by {number.name}: no job was submitted\n")


def hanging_run(folder: Path) -> list[str]:
    """The options of a run whose reward hangs when it is loaded, before Ray is started."""
    make_tiny_tokenizer(folder / "model")
    make_looks(folder / "model", {"model_type": "qwen2", "vocab_size": len(CHARACTERS), "eos_token_id": 1})
    (folder / "reward.py").write_text(HANGING)
    (folder / "p.jsonl").write_text('{"input": "1+1=", "label": "2"}\n')
    settings = ["--device", "cpu", "--ds.attn_implementation", "sdpa", "--ds.param_dtype", "fp32"]
    settings += ["--rollout.max_new_tokens", "8", "--data.max_len", "16", "--reward.overlong_buffer_len", "4"]
    (folder / "c.yaml").write_text(
        "actor: {model_name_or_path: ./model}\ndata: {prompt_dataset: p.jsonl}\neval: {dataset: p.jsonl}\n"
        "reward: {remote_url: reward.py}\n"
    )
    return ["--config", "c.yaml", *settings]


@pytest.mark.parametrize(
    ("command", "number", "words"),
    [
        ("train", signal.SIGTERM, "nothing was trained yet"),
        ("train", signal.SIGHUP, "nothing was trained yet"),
        ("eval", signal.SIGINT, stopping.NOTHING_KEPT),
    ],
)
def test_while_a_reward_is_loaded(tmp_path: Path, command: str, number: signal.Signals, words: str) -> None:
    process, reward = begin(tmp_path, command, *hanging_run(tmp_path))
    process.send_signal(number)
    check_end(process, reward, number, words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("whom", ["command", "group"])
def test_the_ablation(tmp_path: Path, whom: str) -> None:
    """The training that it has started is asked to end, and is waited for."""
    options = ["--output", "ladder", "--seeds", "1", *hanging_run(tmp_path)]
    process, reward = begin(tmp_path, *options, module="scripts.experiments.ablation")
    (os.kill if whom == "command" else os.killpg)(process.pid, signal.SIGINT)
    words = "0 of 6 trials are finished, and 0 can go on from a checkpoint; to go on: the same command"
    check_end(process, reward, signal.SIGINT, words)
    (log,) = (tmp_path / "ladder").rglob("*.log")
    assert log.read_text().endswith("stopped by SIGTERM: nothing was trained yet\n")
