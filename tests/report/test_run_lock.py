"""One process at a time writes a run's folder; a dead one holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.report.run_lock import run_lock

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
