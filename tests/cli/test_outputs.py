"""What a command cannot write or print ends it in one line and with status 1; what only reports on a run does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.cli.outputs import check_output, check_picture
from dapo_openrlhf.cli.train import first_words, obituary
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.whole_file import Unwritable, write_whole


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where two evaluations lie that can be compared."""
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"prompt": f"{n}", "label": "1", "correct": n > 2}) + "\n" for n in range(5))
    for name in ("a", "b"):
        Path(f"{name}.jsonl").write_text(lines)
    return tmp_path


def test_an_output_without_room_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.jsonl", "b.jsonl", "--json", "/dev/full"]) == 1
    assert capsys.readouterr().err == ("/dev/full cannot be written: No space left on device; free some space there\n")
    assert main(["compare", "a.jsonl", "b.jsonl", "--json", "/dev/stdout"]) == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [(".", "it is a folder"), ("no/where.json", "there is no folder no"), ("a.jsonl/b", "there is no folder a")],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"--json: {path} cannot be written: {words}"):
        check_output("--json", Path(path))


def test_a_picture_is_one_that_can_be_drawn() -> None:
    for path in ("a.png", "a.PNG", "a.svg", "a.pdf", "a"):
        check_picture("--picture", Path(path))
    for path, words in {"a.xyz": "is no picture that can be drawn", "no/a.png": "there is no folder no"}.items():
        with pytest.raises(ConfigError, match=f"--picture: {path} .*{words}"):
            check_picture("--picture", Path(path))


@pytest.mark.parametrize(
    ("where", "errors"),
    [("/dev/full", ["the output cannot be printed, and is lost from here on: [Errno 28]"]), ("pipe", [])],
)
def test_what_cannot_be_printed_is_not_status_0(where: str, errors: list[str]) -> None:
    """A full disk below a log, and a reader that has left, such as ``head``."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(where, "w") if where != "pipe" else os.fdopen(writer, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "dapo_openrlhf", "compare", "a.jsonl", "b.jsonl"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG_SECONDS,
        )
    assert done.returncode == 1
    found = done.stderr.splitlines()
    assert len(found) == len(errors) and all(line.startswith(start) for line, start in zip(found, errors, strict=True))


def test_a_voice_that_is_not_heard_stays_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as stream:
        voice = Voice(stream)
        for _ in range(3):
            voice("step")
    assert voice.lost
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_rank_could_not_write_is_said_with_path_and_remedy(folder: Path) -> None:
    run = RunFolder(path=folder)
    words = "WorkerFailed: saving: trainer rank 0 failed: unexpected pos 64 vs 0"
    assert run.trouble(words) is None and not (folder / "probe").exists()
    full = f"{run.checkpoints} cannot be written: No space left on device; free some space there"
    assert run.trouble("I/O error: No space left on device (os error 28)") == full
    assert run.trouble("OSError: [Errno 28] No space left on device") == full
    gone = RunFolder(path=folder / "gone").trouble(words)
    assert gone is not None and "gone/checkpoints cannot be written: No such file or directory; its folder is" in gone
    run.events.touch()
    told = [*obituary(ExceptionGroup("tasks", [RuntimeError("[Errno 28] full\n  at line 5")]), run)]
    assert told == [
        f"{full}; this ended the run: RuntimeError: [Errno 28] full",
        f"what had happened until then is in {run.events}; no checkpoint was made",
    ]


def test_an_error_of_the_log_is_said_once(folder: Path) -> None:
    with pytest.raises(Unwritable) as caught:
        write_whole(folder / "gone" / "events.jsonl", "")
    run = RunFolder(path=folder / "gone")
    assert (
        [*obituary(ExceptionGroup("tasks", [caught.value]), run)] == [str(caught.value)] == [first_words(caught.value)]
    )
