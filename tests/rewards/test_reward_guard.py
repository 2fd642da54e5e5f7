"""Rewards that harm their process, its guard or its owner: each group gets a stated reason, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import HANG_SECONDS, Clock

from dapo_openrlhf.config.reward_origin import PythonFile
from dapo_openrlhf.rewards import guard
from dapo_openrlhf.rewards.printed import FIRST_LINES, LAST_LINES, LONGEST_LINE
from dapo_openrlhf.rewards.process import RewardProcess
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.types import Score

pytestmark = pytest.mark.long

HOSTILE = r"""
import ctypes, os, shutil, signal, subprocess, sys, tempfile, threading, time

def note(file):
    with open(file, "a") as notes:  # one write, so that a reader sees whole lines
        notes.write(f"{os.getpid()}\n")

def sleep_for_ever(file):
    note(file)
    while True:
        time.sleep(1000)

def daemon(file, count=1):
    "Leave the session, the parent and every open file behind."
    for _ in range(count):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 256)
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                sleep_for_ever(file)
            os._exit(0)

def wait_for(file, lines):
    while not os.path.exists(file) or open(file).read().count("\n") < lines:
        time.sleep(0.01)

def descend(depth):
    return descend(depth + 1)

leaked = []

def reward_func(queries, prompts, labels):
    what, file = queries[0].removeprefix(prompts[0]), labels[0]
    if what == "daemons": daemon(file, 12); wait_for(file, 12)
    if what == "daemon then hang": daemon(file); sleep_for_ever(file)
    if what == "daemon then die": daemon(file); wait_for(file, 1); os._exit(5)
    if what == "clean child": subprocess.Popen(["sh", "-c", f"echo $$ >> {file}; exec sleep 1000"], env={}, start_new_session=True); wait_for(file, 1)
    if what == "clean child then hang": subprocess.Popen(["sh", "-c", f"echo $$ >> {file}; exec sleep 1000"], env={}, start_new_session=True); wait_for(file, 1); sleep_for_ever(file)
    if what == "kill the parent": daemon(file); wait_for(file, 1); os.kill(os.getppid(), 9); sleep_for_ever(file)
    if what == "stop the parent": daemon(file); wait_for(file, 1); os.kill(os.getppid(), signal.SIGSTOP); sleep_for_ever(file)
    if what == "kill both guards":
        daemon(file); wait_for(file, 1)
        inner = os.getppid(); outer = int(open(f"/proc/{inner}/stat").read().rpartition(")")[2].split()[1])
        os.kill(outer, 9); os.kill(inner, 9); sleep_for_ever(file)
    if what == "kill the group": os.killpg(0, 9)
    if what == "stop": os.kill(os.getpid(), signal.SIGSTOP)
    if what == "killed": os.kill(os.getpid(), 9)
    if what == "alarm": signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.raise_signal(signal.SIGALRM)
    if what == "exec": os.execvp("sleep", ["sleep", "1000"])
    if what == "recursion": descend(0)
    if what == "C stack": ctypes.string_at(0)
    if what == "digits": int("9" * 10_000_000)
    if what == "interrupt": raise KeyboardInterrupt
    if what == "thread": threading.Thread(target=time.sleep, args=(1e6,)).start()
    if what == "block signals": signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if what == "surroundings":
        folder = tempfile.mkdtemp(); os.chdir(folder); shutil.rmtree(folder); os.umask(0o777)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)
        os.environ.clear(); sys.path.clear(); sys.stdout = sys.stderr = None
    if what == "print 100 MB":
        print("the first line")
        for _ in range(100): sys.stdout.write("x" * ((1 << 20) - 1) + "\n")
        print("the last line")
    if what == "one line of 100 MB": os.write(2, b"the first line\n"); print("y" * (100 << 20))
    if what == "print from C": ctypes.CDLL(None).puts(b"from C"); ctypes.CDLL(None).fflush(None)
    if what in ("write answers", "write without end"):
        garbage = (b"{" * 65535 if what == "write answers" else b"[" * 65534) + b"\n" * (what != "write answers")
        while True:
            for handle in range(3, 20):
                try: os.write(handle, garbage)
                except OSError: pass
    if what == "leak": leaked.append(bytearray(b"x") * (80 << 20))
    return {"rewards": 0.5, "scores": 1.0}
"""

FINE = Score(correct=True, reward=0.5, score=1.0)


@pytest.fixture(scope="module")
def clock() -> Clock:
    """The deadlines' clock. It stands still, so that a busy machine makes nothing late."""
    return Clock()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[RewardProcess]:
    """A reward that does what the response says."""
    file = tmp_path_factory.mktemp("reward") / "hostile.py"
    file.write_text(HOSTILE)
    with RewardProcess(
        RewardSettings(sources=(PythonFile(str(file)),), timeout=1.0, memory=64), clock=clock
    ) as process:
        yield process


def lines_of(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or before it is read
        return False


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    return condition()


@pytest.mark.parametrize(
    ("response", "reason", "words"),
    [
        ("daemon then die", "reward_died", "exited with status 5"),
        ("kill the parent", "reward_died", "was ended by SIGKILL"),
        ("kill both guards", "reward_died", "was ended by SIGKILL"),
        ("kill the group", "reward_died", "was ended by SIGKILL"),
        ("killed", "reward_died", "was ended by SIGKILL"),
        ("alarm", "reward_died", "was ended by SIGALRM"),
        ("C stack", "reward_died", "was ended by SIGSEGV"),
        ("interrupt", "reward_died", "was ended by SIGINT"),
        ("digits", "reward_died", "was ended by SIGXCPU"),
        ("recursion", "reward_error", "RecursionError"),
    ],
)
def test_each_harm_has_its_reason_and_the_next_response_is_judged(
    hostile: RewardProcess, tmp_path: Path, response: str, reason: str, words: str
) -> None:
    scored = hostile.score(response, label=str(tmp_path / "pids"))
    assert (scored.score, scored.reason) == (None, reason)
    assert words in str(scored.error)
    assert wait_until(lambda: not any(map(is_running, lines_of(tmp_path / "pids"))))
    assert hostile.score("fine", label="").score == FINE


def test_an_answer_without_end_is_none_and_the_next_response_is_judged(hostile: RewardProcess) -> None:
    """It is written into every open file of the process, so what gives way first is not this test's to say."""
    scored = hostile.score("write answers", label="")
    reasons = {"reward_error": "over 16 MiB were written where one answer belongs", "reward_died": "the reward process"}
    assert scored.score is None and scored.reason is not None
    assert reasons[scored.reason] in str(scored.error)
    assert hostile.score("fine", label="").score == FINE


@pytest.mark.parametrize(
    ("response", "processes"),
    [
        ("daemon then hang", 2), ("clean child then hang", 2), ("stop the parent", 2), ("stop", 0), ("exec", 0), ("write without end", 0),
    ],
)  # fmt: skip
def test_what_does_not_end_is_late_and_ends_with_all_it_started(
    hostile: RewardProcess, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, response: str, processes: int
) -> None:
    hostile.wait_ready()
    pid, pids = hostile.pid, tmp_path / "pids"
    monkeypatch.setattr(clock, "passes", lambda: len(lines_of(pids)) >= processes)
    scored = hostile.score(response, label=str(pids))
    monkeypatch.undo()
    assert (scored.score, scored.reason, "took over 1 s" in str(scored.error)) == (None, "reward_timeout", True)
    assert wait_until(lambda: not any(map(is_running, [pid, *lines_of(pids)])))
    assert hostile.score("fine", label="").score == FINE


@pytest.mark.parametrize("response", ["thread", "block signals", "surroundings"])
def test_what_does_not_touch_the_answer_leaves_it(hostile: RewardProcess, response: str) -> None:
    assert hostile.score(response, label="").score == FINE
    assert hostile.score("fine", label="").score == FINE


def test_what_was_started_and_left_ends_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    settings = RewardSettings(sources=(PythonFile(str(tmp_path / "hostile.py")),), timeout=HANG_SECONDS)
    with RewardProcess(settings) as process:
        assert process.score("daemons", label=str(tmp_path / "pids")).score == FINE
        assert process.score("clean child", label=str(tmp_path / "other")).score == FINE
        pids = [process.pid, *lines_of(tmp_path / "pids"), *lines_of(tmp_path / "other")]
        assert len(pids) == 14 and all(map(is_running, pids))
    assert wait_until(lambda: not any(map(is_running, pids)))


def owner_of(folder: Path, response: str) -> subprocess.Popen[str]:
    """A process that owns a reward process and asks it about a response."""
    (folder / "hostile.py").write_text(HOSTILE)
    script = (
        "from dapo_openrlhf.config.reward_origin import PythonFile\n"
        "from dapo_openrlhf.rewards.process import RewardProcess\n"
        "from dapo_openrlhf.rewards.settings import RewardSettings\n"
        f"settings = RewardSettings(sources=(PythonFile({str(folder / 'hostile.py')!r}),), timeout=1e6)\n"
        "process = RewardProcess(settings)\n"
        "process.wait_ready()\n"
        "print(process.pid, process._process.pid, flush=True)\n"
        f"process.score({response!r}, label={str(folder / 'pids')!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("response", ["daemon then hang", "clean child then hang"])
@pytest.mark.parametrize("guard_first", [False, True], ids=["owner", "guard, then owner"])
def test_no_process_outlives_an_owner_that_was_killed(tmp_path: Path, response: str, guard_first: bool) -> None:
    """Ray's workers kill their children when they end, and so the outer guard."""
    with owner_of(tmp_path, response) as owner:
        assert owner.stdout is not None
        pid, outer = map(int, owner.stdout.readline().split())
        assert wait_until(lambda: len(lines_of(tmp_path / "pids")) == 2)
        if guard_first:
            os.kill(outer, signal.SIGKILL)
        owner.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_running, [pid, outer, *lines_of(tmp_path / "pids")])))


@pytest.mark.parametrize("which", ["outer", "inner"])
def test_one_guard_is_enough(tmp_path: Path, which: str) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    settings = RewardSettings(sources=(PythonFile(str(tmp_path / "hostile.py")),), timeout=HANG_SECONDS)
    with RewardProcess(settings) as process:
        assert process.score("clean child", label=str(tmp_path / "pids")).score == FINE
        started, outer = [process.pid, *lines_of(tmp_path / "pids")], process._process.pid
        inner = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert len({*started, outer, inner}) == 4
        os.kill(outer if which == "outer" else inner, signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_running, [*started, outer, inner])))


@pytest.mark.parametrize("response", ["print 100 MB", "one line of 100 MB"])
def test_of_what_is_printed_the_beginning_and_the_end_are_kept(tmp_path: Path, response: str) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    settings = RewardSettings(sources=(PythonFile(str(tmp_path / "hostile.py")),), timeout=HANG_SECONDS)
    with RewardProcess(settings) as process:
        assert process.score(response, label="").score == FINE
        assert process.score("fine", label="").score == FINE  # reads the rest
        lines = process.printed()
    assert lines[0] == "the first line" and "left out" in lines[FIRST_LINES]
    assert len(lines) <= FIRST_LINES + 1 + LAST_LINES and max(map(len, lines)) <= LONGEST_LINE


def test_what_c_prints_is_heard(hostile: RewardProcess) -> None:
    hostile.printed()
    assert hostile.score("print from C", label="").score == FINE
    assert hostile.printed() == ["from C"]


def test_a_process_that_leaks_is_replaced_and_says_so(hostile: RewardProcess) -> None:
    hostile.wait_ready()
    pid = hostile.pid
    hostile.printed()
    scored = hostile.score("leak", label="")
    assert scored.score in (FINE, None)  # it may be seen before or after its answer
    said = [str(scored.error), *hostile.printed()]
    assert any("64 MiB" in line and "(reward.memory)" in line for line in said)
    assert hostile.score("fine", label="").score == FINE
    assert hostile.pid != pid


def test_only_processes_with_the_mark_are_ended() -> None:
    marked, other = (
        subprocess.Popen(["sleep", "1000"], env={**os.environ, guard.MARK: value}) for value in ("one", "one more")
    )
    guard.end_marked("one", seconds=HANG_SECONDS)
    assert marked.wait() == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()
