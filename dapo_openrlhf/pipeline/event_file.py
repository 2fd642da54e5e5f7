"""The files of an event log: one that is written, and the older parts of it, compressed (standard library).

::

    events-000001.jsonl.gz, events-000002.jsonl.gz, ...    oldest first
    events-000003.jsonl                                    a full part that is being compressed
    events.jsonl                                           the newest lines

A full file is renamed to a part, which takes a moment, and compressed beside the run. A part counts before its compressed
form does, which appears whole before the part is removed: a kill at any point loses no line and shows none twice.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import itertools
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO, cast

from dapo_openrlhf.whole_file import whole_file, writing

PART_BYTES = 64 << 20
"""Size at which a file becomes a part. Compressed it takes a sixth to a twelfth of that."""
PACKED = ".gz"


def part_of(path: Path, number: int) -> Path:
    """The part of the log ``path`` with this number, from 1, before it is compressed."""
    return path.with_name(f"{path.stem}-{number:06}{path.suffix}")


def is_log(path: Path) -> bool:
    """Whether there is a log ``path``, or a part of it."""
    return path.is_file() or _parts(path) > 0


def size_of(path: Path) -> int:
    """Bytes that a log and its parts take on the disk."""
    files = [path, *path.parent.glob(f"{path.stem}-*{path.suffix}*")]
    return sum(file.stat().st_size for file in files if file.is_file())


class LogFile:
    """A log's file. Every method raises :class:`~dapo_openrlhf.whole_file.Unwritable`."""

    def __init__(self, path: Path, *, part_bytes: int = PART_BYTES) -> None:
        """Open the file to append to it. One that has reached ``part_bytes`` becomes a part, at the end of a line."""
        self._path = path
        self._part_bytes = part_bytes
        self._number = _parts(path) + 1
        self._packing: threading.Thread | None = None
        with writing(path):
            self._file = path.open("a", encoding="utf-8")
            self._size = path.stat().st_size
        self._pack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self._path):
            self._file.close()
        if self._packing is not None:
            self._packing.join()
        pack(self._path)  # a part that was made when the thread had counted them

    def write(self, text: str, /) -> int:
        """Take in a line."""
        with writing(self._path):
            self._size += len(text)
            return self._file.write(text)

    def flush(self) -> None:
        """Write out what was taken in. A file that is no longer where it was opened counts as unwritable."""
        with writing(self._path):
            self._file.flush()
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
            if self._size >= self._part_bytes:
                self._begin_anew()

    def _begin_anew(self) -> None:
        """Make the file a part and open another one; the old one stays open until then."""
        os.rename(self._path, part_of(self._path, self._number))
        file = self._path.open("a", encoding="utf-8")
        self._file.close()
        self._file = file
        self._number += 1
        self._size = 0
        self._pack()

    def _pack(self) -> None:
        """Have the parts compressed in a thread, which is left to die with the process."""
        if self._packing is None or not self._packing.is_alive():
            self._packing = threading.Thread(target=pack, args=(self._path,), daemon=True)
            self._packing.start()


def pack(path: Path) -> None:
    """Compress the parts of a log; one for which there is no room stays as it is."""
    for number in range(1, _parts(path) + 1):
        part = part_of(path, number)
        packed = _packed(part)
        if part.is_file():
            with contextlib.suppress(OSError):
                with whole_file(packed) as unfinished, part.open("rb") as whole, gzip.open(unfinished, "wb") as file:
                    shutil.copyfileobj(whole, file, 1 << 20)
                part.unlink()


# -------------------------------------------------------------------------------------------------------------- read


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log."""

    file: Path
    number: int
    """Its number in the file, from 1."""
    text: str
    trouble: str | None = None
    """Why the file cannot be read on from here; the text is empty then."""


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a log and of its parts, the oldest first, also while a run writes them.

    A last line without a line end is left out: the run was killed while writing it, or is writing it now. Raises
    ``FileNotFoundError`` if there is no log.
    """
    for number in itertools.count(1):
        opened = _open(path, number)
        with opened.file:
            yield from _lines(opened)
        if opened.newest:
            return


@dataclass(frozen=True, slots=True)
class _Opened:
    path: Path
    file: TextIO
    newest: bool = False
    trouble: str | None = None


def _open(path: Path, number: int) -> _Opened:
    """Open a part of a log; where there is no such part, the file that is written, which might become one meanwhile."""
    part = part_of(path, number)
    while True:
        with contextlib.suppress(FileNotFoundError):
            return _Opened(part, part.open(encoding="utf-8", errors="replace"))
        with contextlib.suppress(FileNotFoundError):
            packed = _packed(part)
            return _Opened(packed, cast(TextIO, gzip.open(packed, "rt", encoding="utf-8", errors="replace")))
        newest = _open_newest(path, begun=number > 1)
        if _parts(path) < number:
            return _Opened(path, newest, newest=True)
        newest.close()
        if not _has_part(path, number):
            return _Opened(_packed(part), io.StringIO(), trouble="it is not there, though a later part is")


def _open_newest(path: Path, *, begun: bool) -> TextIO:
    """The file that is written; an empty one if the run was killed between making it a part and opening another one."""
    try:
        return path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if not begun:
            raise
        return Path(os.devnull).open(encoding="utf-8")


def _lines(opened: _Opened) -> Iterator[Line]:
    number = 0
    try:
        for number, text in enumerate(opened.file, start=1):
            if opened.newest and not text.endswith("\n"):
                return
            yield Line(opened.path, number, text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield Line(opened.path, number + 1, "", f"it is damaged: {error}")
    if opened.trouble is not None:
        yield Line(opened.path, 1, "", opened.trouble)


def _parts(path: Path) -> int:
    """The highest number of a part; 0 if there is none."""
    names = (file.name.removesuffix(PACKED) for file in path.parent.glob(f"{path.stem}-*"))
    numbers = (name.removeprefix(f"{path.stem}-").removesuffix(path.suffix) for name in names)
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _has_part(path: Path, number: int) -> bool:
    part = part_of(path, number)
    return part.is_file() or _packed(part).is_file()


def _packed(part: Path) -> Path:
    return part.with_name(part.name + PACKED)
