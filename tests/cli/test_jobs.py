"""What the commands about jobs take for a job, and what they make of a status that is damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.backend.run.jobs.client import JobState
from dapo_openrlhf.cli import jobs
from dapo_openrlhf.cli.jobs import row_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave_status(run: Path, text: str) -> str:
    run.mkdir(parents=True)
    (run / "status.json").write_text(text)
    return str(run)


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize("command", ["stop", "logs", "status"])
def test_an_empty_name_is_not_the_beginning_of_every_job(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    """A variable of a script that was never set must not stop the only job."""
    assert main([command, name]) == 2
    assert "is no job's id" in capsys.readouterr().err


def test_the_folder_of_a_run_stands_for_its_job(folder: Path) -> None:
    leave_status(folder / "runs" / "ünï x", '{"job": "dapo-1"}')
    (folder / "runs" / "latest").symlink_to("ünï x")
    assert jobs._id_of("runs/ünï x") == jobs._id_of("latest") == "dapo-1"
    assert jobs._id_of("dapo-2") == "dapo-2"


@pytest.mark.parametrize(
    ("name", "words"),
    [("runs/none", "no job's id, and no folder of a run"), ("runs/own", "no job has done this run; `.* jobs` lists")],
)
@pytest.mark.parametrize("command", ["stop", "logs"])
def test_a_folder_without_a_job_is_refused_before_any_cluster_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, words: str
) -> None:
    leave_status(folder / "runs" / "own", '{"job": "", "step": 3}')
    assert main([command, name]) == 2
    told = capsys.readouterr().err
    assert words.partition("`")[0] in told and "--address" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"updated": "abc", "step": 3}', "updated  abc\nstep     3\n"),
        ('{"updated": 1e400, "seconds_left": -5}', "updated    inf\ntime left  0:00\n"),
        ('{"updated": 1e300, "seconds_left": "soon"}', "updated       1e+300\nseconds left  soon\n"),
        ('{"seconds_left": NaN}', "seconds left  nan\n"),
    ],
)
def test_numbers_that_are_none_are_shown_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    assert main(["status", leave_status(folder / "run", text)]) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("text", "words"), [("{", "cannot be read"), ("[]", "cannot be read"), (None, "no status.json is in it")]
)
def test_a_status_that_cannot_be_read_is_told_from_one_that_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    run = folder / "run"
    run.mkdir() if text is None else leave_status(run, text)
    assert main(["status", "run"]) == 2
    assert words in capsys.readouterr().err


def running(metadata: dict[str, str]) -> JobState:
    return JobState(
        id="j",
        state="RUNNING",
        ended=False,
        ours=True,
        message="",
        exit_code=None,
        started=None,
        metadata=metadata,
    )


def test_a_line_tells_how_far_a_job_is() -> None:
    told = {"step": "12", "max_steps": "40", "accuracy": "0.5", "tokens_per_second": "2653.4", "seconds_left": "95.2"}
    job = running({"run": "name", **{f"dapo.{name}": value for name, value in told.items()}, "dapo.run": "/runs/a"})
    assert row_of(job) == ("j", "running", "12/40", "50.0%", "2,653", "1:35", "/runs/a")


def test_a_line_of_a_job_whose_metadata_another_program_wrote() -> None:
    told = {"accuracy": "high", "tokens_per_second": "inf", "seconds_left": "-3", "step": "4"}
    job = running({f"dapo.{name}": value for name, value in told.items()})
    assert row_of(job) == ("j", "running", "", "", "", "0:00", "")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_whose_output_is_closed_does_its_work(tmp_path: Path, closed: str) -> None:
    leave_status(tmp_path / "run", '{"step": 3}')
    shell = f"'{sys.executable}' -m dapo_openrlhf status run {closed}"
    done = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
