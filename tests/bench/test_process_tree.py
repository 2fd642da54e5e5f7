"""A command that is run for a measurement ends with whoever runs it, and ends what it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from patience import HANG_SECONDS

from dapo_openrlhf import stopping
from dapo_openrlhf.bench import process_tree
from dapo_openrlhf.bench.process_tree import last_lines, run_tree

CHILD = """
import os, signal, subprocess, sys, time
def end(number, frame):
    print("kept", flush=True)
    {end}
signal.signal(signal.SIGTERM, end)
grandchild = subprocess.Popen(["sleep", "100000"])
with open("pids", "w") as pids:
    pids.write(f"{{os.getpid()}} {{grandchild.pid}}")
os.kill(os.getppid(), signal.{number})
while True:
    time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_gone() -> None:
    for pid in Path("pids").read_text().split():
        try:
            psutil.Process(int(pid)).wait(HANG_SECONDS)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("end", ["sys.exit()", "pass"])
def test_interrupted_it_is_asked_to_end_and_what_is_left_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """One that does not end is killed when its seconds are over, which here they are at once."""
    if end == "pass":
        monkeypatch.setattr(process_tree, "ENDING_SECONDS", 0.0)
    log = folder / "log"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stopping.handled(), pytest.raises(stopping.Stopped):
            run_tree([sys.executable, "-c", CHILD.format(end=end, number="SIGHUP")], os.environ, log, None)
    finally:
        signal.signal(signal.SIGHUP, before)
    check_gone()
    assert end == "pass" or last_lines(log, 9) == "kept\n"


def test_killed_itself_it_leaves_a_process_that_is_asked_to_end(folder: Path) -> None:
    child = CHILD.format(end="grandchild.kill(); sys.exit()", number="SIGKILL")
    runner = (
        "import os, pathlib, sys\n"
        "from dapo_openrlhf.bench.process_tree import run_tree\n"
        f"run_tree([sys.executable, '-c', {child!r}], os.environ, pathlib.Path('log'), None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", runner], env=environment).returncode == -signal.SIGKILL
    check_gone()
    assert last_lines(folder / "log", 9) == "kept\n"


def test_what_is_late_is_ended(folder: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_tree([sys.executable, "-c", "import time; time.sleep(100000)"], os.environ, folder / "log", 0.0)
    assert run_tree([sys.executable, "-c", "print(1); raise SystemExit(3)"], os.environ, folder / "log", None) == 3
    assert last_lines(folder / "log", 9) == "1\n"


def test_a_command_that_has_done_enough_is_ended_and_succeeds(folder: Path) -> None:
    done = Path("done")
    command = [sys.executable, "-c", "import pathlib, time; pathlib.Path('done').touch(); time.sleep(100000)"]
    assert run_tree(command, os.environ, folder / "log", HANG_SECONDS, enough=done.exists) == 0


def test_a_command_that_never_does_enough_is_late_or_ends_with_its_status(folder: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_tree(["sleep", "100000"], os.environ, folder / "log", 0.1, enough=lambda: False)
    assert (
        run_tree([sys.executable, "-c", "raise SystemExit(3)"], os.environ, folder / "log", None, enough=lambda: False)
        == 3
    )
