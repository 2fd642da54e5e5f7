"""Faults find their process and hit it, phases are held, and what is left of a trial is told; without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import psutil
import pytest

from dapo_openrlhf.pipeline.checkpoint import Checkpoints, RunState
from dapo_openrlhf.pipeline.manifest import problems
from dapo_openrlhf.pipeline.prompts import PromptState
from scripts.chaos import faults
from scripts.chaos.__main__ import run, table
from scripts.chaos.rows import Fault, Phase
from scripts.chaos.trial import Result


@pytest.fixture
def engine() -> Iterator[subprocess.Popen[bytes]]:
    """A process that Ray would call so."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "ray::EngineActor.generate"], stdin=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def state_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until it has stopped, gone on or ended; returns what waitpid says."""
    return os.waitpid(process.pid, os.WUNTRACED | os.WCONTINUED)[1]


def test_a_phase_is_held_by_a_process_and_released(engine: subprocess.Popen[bytes]) -> None:
    held = faults.hold(faults.ENGINE, psutil.Process())
    assert held is not None and held.pid == engine.pid
    assert os.WIFSTOPPED(state_of(engine))
    faults.release(held)
    assert os.WIFCONTINUED(state_of(engine))
    faults.strike("engine_stopped", psutil.Process())
    assert os.WIFSTOPPED(state_of(engine))
    faults.strike("engine_killed", psutil.Process())
    assert engine.wait() == -signal.SIGKILL
    faults.release(held)  # it is no more, which is no error
    with pytest.raises(LookupError, match="no process ray::EngineActor"):
        faults.strike("engine_killed", psutil.Process())


def test_nothing_is_held_where_nothing_has_to_be() -> None:
    assert faults.hold("", psutil.Process()) is None
    faults.release(None)
    assert faults.HOLDERS.keys() == set(get_args(Phase))
    assert faults.VICTIMS.keys() == set(get_args(Fault)) - {"terminated", "damaged"}


def test_a_damaged_checkpoint_is_the_newest_and_is_seen_to_be_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=5)
    for step in (2, 4):
        folder = Path(checkpoints.begin(step))
        (folder / "model.safetensors").write_bytes(bytes(1000))
        checkpoints.finish(RunState(step=step, prompts=PromptState(drawn=1, returned=(), prompt_count=9)))
    assert faults.damage(tmp_path) == "half of step-000004/model.safetensors is gone"
    assert problems(tmp_path / "step-000002") == []
    assert problems(tmp_path / "step-000004") != []
    assert checkpoints.newest_good(lambda words: None) == tmp_path / "step-000002"


RESULT = Result(
    row="engine_killed/training/gloo",
    happened="engine lost; RuntimeError: a|b",
    exit_codes=(1, 0),
    seconds_to_go_on=12.34,
    steps_lost=2,
    groups_trained=36,
    problems=(),
    passed=True,
)


def test_a_result_is_a_line_of_the_table() -> None:
    lines = table([RESULT, replace(RESULT, seconds_to_go_on=None, problems=("version 1 came twice",))]).split("\n")
    assert lines[2] == (
        "| engine_killed | training | gloo | engine lost; RuntimeError: a\\|b | 1, then 0 | 12.3 | 2 "
        "| 36 groups trained, each prompt once |"
    )
    assert lines[3].endswith("| engine lost; RuntimeError: a\\|b | 1, then 0 | - | 2 | version 1 came twice |")


def test_a_pattern_without_rows_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"no row matches nothing/\*; rows are called engine_killed/generating/object_store"
    ):
        run(("nothing/*",), tmp_path / "out")
    with pytest.raises(SystemExit, match="is there already"):
        run(("*",), tmp_path)
