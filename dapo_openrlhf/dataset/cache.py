"""Where sets of prompts are kept, so that a file is rendered once: found again by everything that decides what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO

from dapo_openrlhf import __version__
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.whole_file import UNFINISHED, whole_file

FORMAT = 1
"""To be raised with every change of what becomes of a row."""

MOST_BYTES = 4 << 30
"""Of all sets together; the ones that were not used for longest go first."""

STALE_SECONDS = 86400.0
"""After which an unfinished set is one of a process that was killed."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Files of a model that say nothing about its prompts."""

Digest = bytes


def folder() -> Path:
    """``$XDG_CACHE_HOME/dapo_openrlhf/prompts``, or the same in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dapo_openrlhf" / "prompts"


def digest_of(path: Path) -> Digest:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def key_of(file: Digest, rules: RowRules) -> str | None:
    """The name of a file's prompts under these rules; None for a model on the hub, whose files may change there."""
    model = Path(rules.model)
    if not model.is_dir():
        return None
    sha = hashlib.sha256(file)
    versions = {name: version(name) for name in ("transformers", "tokenizers", "jinja2")}
    settings = {**asdict(rules), "model": None}
    sha.update(json.dumps([FORMAT, __version__, versions, settings], sort_keys=True).encode())
    for part in sorted(model.iterdir()):
        if part.is_file() and part.suffix not in WEIGHTS:
            sha.update(part.name.encode() + b"\0" + digest_of(part))
    return sha.hexdigest()


def open_kept(key: str) -> IO[bytes] | None:
    """The file of that name, marked as used, for the caller to close; None if there is none, or none can be read."""
    path = folder() / key
    try:
        os.utime(path)
        return path.open("rb")
    except OSError:
        return None


@contextmanager
def new_file(key: str | None) -> Iterator[IO[bytes]]:
    """A file to write a set into, which is kept under ``key`` once this is left without an error.

    Where nothing can be kept, it is a temporary one. Writers of the same set do not see each other; the last one's stays.
    """
    place = folder()
    if key is None or not _can_keep(place):
        with tempfile.TemporaryFile() as file:
            yield file
        return
    with whole_file(place / key) as unfinished, unfinished.open("w+b") as file:
        yield file
    _make_room(place)


def _can_keep(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(place, os.W_OK)


def _make_room(place: Path) -> None:
    """Remove what was used least recently, beyond :data:`MOST_BYTES`, and what was never finished."""
    room = MOST_BYTES
    with contextlib.suppress(FileNotFoundError):  # somebody else makes room too
        for path in sorted(place.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            status = path.stat()
            if path.name.startswith(UNFINISHED):
                if time.time() - status.st_mtime > STALE_SECONDS:
                    path.unlink()
                continue
            room -= status.st_size
            if room < 0:
                path.unlink()
