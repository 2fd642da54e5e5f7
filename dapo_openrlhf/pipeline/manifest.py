"""Records the sizes and hashes of a checkpoint's files when it is written (xxhash and the standard library)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import xxhash

MANIFEST_FILE = "manifest.json"
CHUNK_BYTES = 16 << 20
THREADS = 8
"""Number of files that are read concurrently; xxhash lets other threads run meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """The record of one file."""

    bytes: int
    xxh3: str
    """XXH3 hash of the file's content, 128 bits, hexadecimal."""


def write_manifest(folder: Path) -> None:
    """Record every file below a folder in a manifest in that folder."""
    records = _records(folder, _files(folder))
    values = {name: {"bytes": record.bytes, "xxh3": record.xxh3} for name, record in records.items()}
    (folder / MANIFEST_FILE).write_text(json.dumps({"files": values}, indent=1) + "\n", encoding="utf-8")


def problems(folder: Path) -> list[str]:
    """The files that differ from the record, one line each; empty for an undamaged folder.

    Files beyond those recorded are ignored. All sizes are compared before anything is read.
    """
    try:
        recorded = _read(folder / MANIFEST_FILE)
    except FileNotFoundError:
        return [f"{MANIFEST_FILE} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return [f"{MANIFEST_FILE} cannot be read: {type(error).__name__}: {error}"]
    if not recorded:
        return [f"{MANIFEST_FILE} names no file"]
    with ThreadPoolExecutor(THREADS) as threads:
        for differs in (_size_differs, _content_differs):
            found = threads.map(differs, repeat(folder), recorded, recorded.values())
            if wrong := [line for line in found if line]:
                return wrong
    return []


def size(folder: Path) -> int:
    """Size in bytes of all files below a folder."""
    return sum((folder / name).stat().st_size for name in _files(folder))


def _read(path: Path) -> Mapping[str, FileRecord]:
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    return {name: FileRecord(bytes=int(values["bytes"]), xxh3=values["xxh3"]) for name, values in files.items()}


def _files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE
    )


def _records(folder: Path, names: list[str]) -> dict[str, FileRecord]:
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _record(folder / name), names), strict=True))


def _record(path: Path) -> FileRecord:
    digest, length = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            length += len(chunk)
    return FileRecord(bytes=length, xxh3=digest.hexdigest())


def _size_differs(folder: Path, name: str, recorded: FileRecord) -> str:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    found = path.stat().st_size
    return "" if found == recorded.bytes else f"{name} has {found:,} bytes, where {recorded.bytes:,} were written"


def _content_differs(folder: Path, name: str, recorded: FileRecord) -> str:
    try:
        return "" if _record(folder / name) == recorded else f"{name} has other contents than were written"
    except OSError as error:  # a disk that is damaged, a file that somebody else owns
        return f"{name} cannot be read: {error.strerror}"
