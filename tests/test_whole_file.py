"""Files and folders appear in one piece, or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dapo_openrlhf.whole_file import (
    Unwritable,
    put_in_place,
    remove_unfinished,
    remove_whole,
    whole_file,
    write_whole,
    writing,
)


class Killed(BaseException):
    """The process ends here."""


def killed(*arguments: object) -> None:
    raise Killed


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    write_whole(file, "old ½")
    for broken in ("rename", "write_bytes"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os if broken == "rename" else Path, broken, killed)
            write_whole(file, "new and longer")
        assert file.read_text(encoding="utf-8") == "old ½"
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file], "nothing unfinished is left"


def test_an_error_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "responses.jsonl"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as unfinished:
        unfinished.write_text("half")
        assert file.read_text() == "old"
        raise ZeroDivisionError
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_two_may_write_the_same_file_and_the_last_ones_stays(tmp_path: Path) -> None:
    file = tmp_path / "set"
    with whole_file(file) as first:
        first.write_text("first")
        with whole_file(file) as second:
            second.write_text("second")
        assert file.read_text() == "second"
    assert (file.read_text(), list(tmp_path.iterdir())) == ("first", [file])


def _empty(place: Path) -> None:
    """Nothing is there."""


def _file(place: Path) -> None:
    place.write_text("old")


def _folder(place: Path) -> None:
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "old").touch()


def _folder_and_remains(place: Path) -> None:
    _folder(place)
    _folder(place.with_name(f".unfinished-{place.name}"))


@pytest.mark.parametrize("before", [_empty, _folder, _folder_and_remains])
def test_a_folder_replaces_what_was_there(tmp_path: Path, before: Callable[[Path], None]) -> None:
    before(tmp_path / "model")
    with whole_file(tmp_path / "model") as folder:
        folder.mkdir()
        (folder / "weights").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    _folder(tmp_path / "data")
    with pytest.raises(Unwritable, match="data cannot be written: Is a directory; it is a folder; name a file"):
        write_whole(tmp_path / "data", "prompts")
    assert (tmp_path / "data" / "deep" / "old").exists()
    _file(tmp_path / "model")
    with (
        pytest.raises(Unwritable, match="model cannot be written: Not a directory"),
        whole_file(tmp_path / "model") as folder,
    ):
        folder.mkdir()
    assert (tmp_path / "model").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    _folder(tmp_path / "run")
    (tmp_path / "latest").symlink_to("run")
    with whole_file(tmp_path / "latest") as link:
        link.symlink_to("run-2")
    assert os.readlink(tmp_path / "latest") == "run-2"
    assert (tmp_path / "run" / "deep" / "old").exists()


def test_killed_while_it_is_replaced_a_folder_is_whole_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", "step"):
        _folder(tmp_path / name)
    rename = os.rename
    calls: list[object] = []

    def second_kills(old: Path, new: Path) -> None:
        calls.append(old)
        rename(old, new) if len(calls) == 1 else killed()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", second_kills)
        put_in_place(tmp_path / "new", tmp_path / "step")
    assert (tmp_path / "new" / "deep" / "old").exists() and not (tmp_path / "step").exists()
    put_in_place(tmp_path / "new", tmp_path / "step")
    assert (tmp_path / "step" / "deep" / "old").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "step"], "remains of before are gone"


def test_a_folder_is_removed_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder_and_remains(tmp_path / "step")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("shutil.rmtree", killed)
        remove_whole(tmp_path / "step")
    assert (tmp_path / "step").exists(), "remains of before go first"
    remove_whole(tmp_path / "step")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def little_room() -> Iterator[None]:
    """A limit of the size of files, which ends a write in the middle as a full disk does; it holds for pytest's output too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_finds_no_room_names_path_cause_and_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("old")
    with pytest.raises(Unwritable) as caught, little_room():
        write_whole(file, b"0" * 5000)
    assert str(caught.value) == (
        f"{file} cannot be written: File too large; raise the limit of a file's size (ulimit -f)"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_a_folder_that_vanishes_or_becomes_a_file_is_named(tmp_path: Path) -> None:
    for place, cause in (("gone", "No such file or directory"), ("file", "Not a directory")):
        (tmp_path / "file").touch()
        with pytest.raises(Unwritable, match=rf"{place}/set cannot be written: {cause}; its folder is gone"):
            write_whole(tmp_path / place / "set", "new")


def test_a_place_that_no_folder_can_be_in_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(
        Unwritable, match=r"loop/set cannot be written: Too many levels .*; a link on the way there leads"
    ):
        write_whole(tmp_path / "loop" / "set", "new")
    for place in ("loop", "file"):
        (tmp_path / "file").touch()
        with (
            pytest.raises(Unwritable, match=rf"{place}/runs cannot be written: File exists; a file, or a link that"),
            writing(tmp_path / place / "runs"),
        ):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
    with pytest.raises(Unwritable, match="cannot be written: File name too long; use shorter names"):
        write_whole(tmp_path / ("n" * 250), "new")


def test_a_device_is_written_and_stays_what_it_is(tmp_path: Path) -> None:
    write_whole(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(Unwritable, match="/dev/full cannot be written: No space left on device; free some space there"):
        write_whole(Path("/dev/full"), "new")
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(Unwritable, match="link cannot be written: No space left"):
        write_whole(tmp_path / "link", "new")
    assert Path("/dev/full").is_char_device() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        FileNotFoundError(errno.ENOENT, "no such file", "/elsewhere/model"),
        PermissionError(errno.EACCES, "not allowed"),
        OSError("of a library, without a number"),
    ],
)
def test_errors_of_something_else_stay_what_they_are(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(OSError) as caught, writing(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_remains_are_removed_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    for name in ("checkpoints/.unfinished-000006", "checkpoints/step-000004", "checkpoint.unfinished"):
        _folder(tmp_path / name)
    _file(tmp_path / ".unfinished-summary.json.1234")
    remove_unfinished(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*")) if path.is_dir()] == [
        "checkpoints", "checkpoints/step-000004", "checkpoints/step-000004/deep",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    remove_unfinished(tmp_path / "gone")


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_what_appears_has_the_permissions_of_the_umask(
    tmp_path: Path, umask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "model") as unfinished:
            unfinished.mkdir(mode=0o700)
            private = os.open(unfinished / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600)
            os.close(private)
            (unfinished / "program").touch()
            (unfinished / "program").chmod(0o711)
            (unfinished / "outside").symlink_to(tmp_path)
        write_whole(tmp_path / "config.yaml", "a: 1")
    finally:
        os.umask(before)
    model = tmp_path / "model"
    modes = [path.stat().st_mode & 0o777 for path in (model / "model.safetensors", tmp_path / "config.yaml", model)]
    assert modes == [file_mode, file_mode, folder_mode]
    assert (model / "program").stat().st_mode & 0o777 == 0o711 | file_mode
    assert tmp_path.stat().st_mode & 0o777 == 0o700, "what a link points to is not touched"
