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
from scripts.chaos import __main__ as chaos
from scripts.chaos import faults
from scripts.chaos.__main__ import run
from scripts.chaos.page import page, table
from scripts.chaos.rows import ROWS, Fault, Phase, Row
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
    day="2026-11-28",
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
    with pytest.raises(SystemExit, match="is there already, without a table"):
        run(("*",), tmp_path)


def test_rows_that_have_passed_in_a_folder_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rows one has passed, one has failed, and one was not tried."""
    folder, asked = tmp_path / "chaos", []

    def attempt(row: Row, work: object, into: Path) -> Result:
        assert not into.exists()  # what a failed trial has left is gone
        into.mkdir()
        asked.append(row.phase)
        return replace(RESULT, row=row.name, passed=row.phase != "saving" or asked.count("saving") > 1)

    monkeypatch.setattr(chaos, "workload", lambda folder: folder.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(chaos, "try_row", attempt)
    assert [result.passed for result in run(("engine_killed/[ps]*/gloo",), folder)] == [True, False]
    assert [result.row.split("/")[1] for result in run(("engine_killed/*/gloo",), folder)] == [
        "publishing", "saving", "generating", "training",
    ]  # fmt: skip
    assert asked == ["publishing", "saving", "generating", "training", "saving"]
    assert all(result.passed for result in run(("engine_killed/*/gloo",), folder)) and len(asked) == 5


def test_the_page_says_when_and_on_what_and_which_rows_failed() -> None:
    later = replace(RESULT, row="damaged/saving/object_store", day="2026-11-30", passed=False)
    text = page([RESULT, later], machine="two busy cores")
    words = "Tried 2026-11-28 to 2026-11-30 on two busy cores: 1 of 2 rows passed; not `damaged/saving/object_store`. "
    assert f"{words}46 others were not tried then.\n\n{table([later, RESULT])}" in text
    whole = [replace(RESULT, row=row.name) for row in ROWS]
    assert "Tried 2026-11-28 on two busy cores: 48 of 48 rows passed.\n" in page(whole, machine="two busy cores")
