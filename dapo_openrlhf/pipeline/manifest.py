"""Records the sizes and hashes of a checkpoint's files when it is written (xxhash and the standard library)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST_FILE} cannot be read: {type(error).__name__}: {error}"]
    sizes = {name: _size(folder / name) for name in recorded}
    wrong = [
        _other_size(name, sizes[name], recorded[name].bytes) for name in recorded if sizes[name] != recorded[name].bytes
    ]
    if wrong:
        return wrong
    found = _records(folder, recorded)
    return [f"{name} has other contents than were written" for name in recorded if found[name] != recorded[name]]


def size(folder: Path) -> int:
    """Size in bytes of all files below a folder."""
    return sum((folder / name).stat().st_size for name in _files(folder))


def _read(path: Path) -> Mapping[str, FileRecord]:
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    return {name: FileRecord(bytes=values["bytes"], xxh3=values["xxh3"]) for name, values in files.items()}


def _files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE
    )


def _records(folder: Path, names: Mapping[str, FileRecord] | list[str]) -> dict[str, FileRecord]:
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _record(folder / name), names), strict=True))


def _record(path: Path) -> FileRecord:
    digest, length = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            length += len(chunk)
    return FileRecord(bytes=length, xxh3=digest.hexdigest())


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _other_size(name: str, found: int | None, recorded: int) -> str:
    return f"{name} is missing" if found is None else f"{name} has {found:,} bytes, where {recorded:,} were written"
