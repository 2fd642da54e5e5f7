"""One process at a time writes a run's folder; a dead one holds nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.report.run_lock import LOOK_PAUSES, is_being_written, run_lock

HOLD = (
    "import sys, pathlib; from dapo_openrlhf.report.run_lock import run_lock\n"
    "with run_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()\n"
)


def test_a_second_one_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    words = rf"process {os.getpid()} on \S+ is writing this run"
    with run_lock(tmp_path), pytest.raises(ConfigError, match=words), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):  # free again
        pass


@pytest.mark.parametrize("end", ["left", "killed"])
def test_another_process_holds_it_until_it_ends_however_it_ends(tmp_path: Path, end: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"process {holder.pid} on"), run_lock(tmp_path):
        pass
    if end == "killed":
        holder.kill()
    holder.communicate()
    with run_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_programs_that_the_run_starts_do_not_hold_it(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with run_lock(tmp_path):
        pass
    child.communicate()


def test_a_look_at_a_run_that_is_to_begin_does_not_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks holds the lock for a moment, shared; here until the run has tried twice."""
    (tmp_path / ".lock").touch()
    assert not is_being_written(tmp_path)
    pauses: list[float] = []
    with (tmp_path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda pause: pauses.append(pause) or (len(pauses) == 2 and look.close()))
        with run_lock(tmp_path):
            assert is_being_written(tmp_path)
    assert pauses == [*LOOK_PAUSES[:2]]
