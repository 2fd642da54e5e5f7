"""A log in parts: nothing is lost or shown twice, whenever the run is killed and whoever reads meanwhile."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from dapo_openrlhf.pipeline import event_file
from dapo_openrlhf.pipeline.event_file import LogFile, is_log, pack, part_of, read_lines, size_of
from dapo_openrlhf.pipeline.event_log import EventLog, EventLogError, read, read_what_is_left
from dapo_openrlhf.pipeline.events import Checkpointed, Event
from dapo_openrlhf.report.history import earlier_life
from dapo_openrlhf.report.run_folder import RunFolder

LINES = [f"{number:03} {'x' * 15}\n" for number in range(40)]
"""20 bytes each."""
PART = 100


def event(step: int) -> Event:
    return Checkpointed(step=step, path="there", seconds=0.0)


def write(path: Path, lines: list[str], *, part_bytes: int = PART) -> None:
    with LogFile(path, part_bytes=part_bytes) as file:
        for line in lines:
            file.write(line)
            file.flush()


def texts(path: Path) -> list[str]:
    found = [*read_lines(path)]
    assert all(line.trouble is None for line in found)
    return [line.text for line in found]


def test_a_full_file_becomes_a_compressed_part_and_all_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, LINES[:23])
    names = [f"events-{number:06}.jsonl.gz" for number in range(1, 5)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "events.jsonl"]
    assert gzip.decompress((tmp_path / names[0]).read_bytes()).decode() == "".join(LINES[:5])
    assert path.read_text() == "".join(LINES[20:23])
    assert texts(path) == LINES[:23]
    write(path, LINES[23:])  # as a resumed run does
    assert texts(path) == LINES
    assert [(line.file.name, line.number) for line in read_lines(path)][38:] == [
        ("events-000008.jsonl.gz", 4),
        ("events-000008.jsonl.gz", 5),
    ]
    assert path.read_bytes() == b""


def test_parts_are_smaller_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, LINES * 100, part_bytes=len(LINES) * 2000)
    assert not path.stat().st_size
    assert 0 < size_of(path) < len(LINES) * 2000 / 10


KILLED = """
import os, sys
from pathlib import Path

from dapo_openrlhf.pipeline.event_file import LogFile

path, latest = Path(sys.argv[1]), int(sys.argv[2])
lines = [f"{number:03} {'x' * 15}\\n" for number in range(40)]
seen = 0

def kill(name, arguments):
    global seen
    if name in ("open", "os.rename", "os.remove") and str(path.parent) in str(arguments[0]):
        seen += 1
        if seen == latest:
            os.write(1, str(done).encode())
            os._exit(9)

done = 0
sys.addaudithook(kill)
with LogFile(path, part_bytes=100) as file:
    for line in lines[:7]:
        file.write(line)
        file.flush()
        done += 1
        if done == 5:
            file._packing.join()  # the order of what is done is the same every time
"""


def test_a_kill_at_any_point_of_making_a_part_loses_no_line_and_shows_none_twice(tmp_path: Path) -> None:
    points = 0
    for latest in range(1, 100):
        path = tmp_path / str(latest) / "events.jsonl"
        path.parent.mkdir()
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(latest)], capture_output=True, text=True, check=False
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == 9, ended.stderr
        points += 1
        flushed = int(ended.stdout)
        if not is_log(path):
            assert flushed == 0
            continue
        read_before = texts(path)
        assert len(read_before) in (flushed, flushed + 1), "a line is flushed before its file becomes a part"
        write(path, LINES[len(read_before) :])
        assert texts(path) == LINES
        assert not [*path.parent.glob("events-*.jsonl")], "a part was left as it was"
    assert points >= 6, "open, rename, open, then the compressed form: open, rename, and the removal"


def test_a_reader_follows_a_log_whose_file_becomes_a_part_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, LINES[:8])
    for begun in range(8):
        reader = read_lines(path)
        found = [next(reader).text for _ in range(begun)]
        path.rename(part_of(path, 2))
        path.write_text("".join(LINES[8:11]))
        found += [line.text for line in reader]
        assert found in (LINES[:8], LINES[:11]), "it has what was there when it opened the file, or what came later too"
        part_of(path, 2).rename(path)


def test_a_file_that_becomes_a_part_before_it_is_opened_is_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(LINES[:3]))
    real, times = event_file._open_newest, 0

    def open_later(path: Path, *, begun: bool) -> object:
        nonlocal times
        times += 1
        if times == 1:
            path.rename(part_of(path, 1))
            path.write_text(LINES[3])
        if times == 2:
            pack(path)
        return real(path, begun=begun)

    monkeypatch.setattr(event_file, "_open_newest", open_later)
    assert texts(path) == LINES[:4]


def test_a_log_without_its_newest_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert not is_log(path)
    with pytest.raises(FileNotFoundError):
        texts(path)
    write(path, LINES[:5])
    path.unlink()
    assert is_log(path)
    assert texts(path) == LINES[:5]


def test_a_part_that_finds_no_room_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dapo_openrlhf.pipeline.event_file.shutil.copyfileobj", full)
        write(path, LINES[:12])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "events-000001.jsonl",
        "events-000002.jsonl",
        "events.jsonl",
    ]
    assert texts(path) == LINES[:12]
    write(path, LINES[12:14])
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".gz", ".gz", ".jsonl"]
    assert texts(path) == LINES[:14]


def log_in_parts(path: Path) -> None:
    """Steps 0 to 11 in parts of five."""
    line = '{"time":0.0,"event":"checkpointed","step":0,"path":"there","seconds":0.0}\n'
    with LogFile(path, part_bytes=5 * len(line)) as file:
        log = EventLog(file, clock=lambda: 0.0)
        for step in range(12):
            log.emit(event(step % 10))


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "text", "missing"])
def test_a_part_that_is_damaged_is_named_and_what_is_left_is_read(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.jsonl"
    log_in_parts(path)
    part = tmp_path / "events-000001.jsonl.gz"
    content = part.read_bytes()
    match damage:
        case "truncated":
            part.write_bytes(content[: len(content) // 2])
        case "zeroed":
            part.write_bytes(bytes(len(content)))
        case "text":
            part.write_text("no archive\n")
        case "missing":
            part.unlink()
    with pytest.raises(EventLogError, match=r"events-000001\.jsonl\.gz, line \d+: it is (damaged|not there)"):
        list(read(path))
    damaged: list[int] = []
    left = [logged.event for logged in read_what_is_left(path, damaged.append)]
    assert left[-7:] == [event(step % 10) for step in range(5, 12)]
    assert len(damaged) == 1
    with LogFile(path) as file:
        EventLog(file, clock=lambda: 0.0).emit(event(3))
    assert [logged.event for logged in read_what_is_left(path, damaged.append)] == [*left, event(3)]


def test_a_run_in_parts_is_resumed_with_all_of_them(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    log_in_parts(folder.events)
    with folder.events.open("a") as file:
        file.write('{"time":0.5,"eve')
    RunFolder.reopen(folder.path)
    with LogFile(folder.events) as file:
        EventLog(file, clock=lambda: 0.0).emit(event(7))
    assert [logged.event for logged in read(folder.events)] == [event(step % 10) for step in [*range(12), 7]]
    assert earlier_life(folder.events, 5).evaluations == {}
