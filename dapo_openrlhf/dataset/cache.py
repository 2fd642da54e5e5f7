"""The cache of prompt sets, so that a file is rendered once; the key covers everything that determines the prompts."""

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
from dapo_openrlhf.dataset.rows import files_of
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.whole_file import UNFINISHED, whole_file

FORMAT = 3
"""Version of the cache; increase it with every change of how rows are processed."""

MOST_BYTES = 4 << 30
"""Largest size of all sets together; the least recently used ones are removed first."""

STALE_SECONDS = 86400.0
"""Age in seconds from which an unfinished set is taken to be left by a process that was killed."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Suffixes of a model's files that do not affect its prompts."""

Digest = bytes


def folder() -> Path:
    """The cache's folder: ``$XDG_CACHE_HOME/dapo_openrlhf/prompts``, or the same in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dapo_openrlhf" / "prompts"


def digest_of(path: Path) -> Digest:
    """SHA-256 of a file's bytes, or of the digests of a saved folder's files."""
    if path.is_dir():
        return hashlib.sha256(b"".join(map(digest_of, files_of(path)))).digest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def key_of(file: Digest, rules: RowRules) -> str | None:
    """The key of a file's prompts under these rules; None for a model on the hub, whose files may change there."""
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
    """Open the file of a key and mark it as used; the caller closes it. None if there is none, or it cannot be read."""
    path = folder() / key
    try:
        os.utime(path)
        return path.open("rb")
    except OSError:
        return None


@contextmanager
def new_file(key: str | None) -> Iterator[IO[bytes]]:
    """Lend a file to write a set into, which is kept under ``key`` when the block ends without an error.

    Where nothing can be kept, it is a temporary file. Writers of the same set do not affect each other; the last one's
    stays.
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
    """Remove the least recently used sets beyond :data:`MOST_BYTES`, and stale unfinished ones."""
    room = MOST_BYTES
    with contextlib.suppress(FileNotFoundError):  # another process may make room too
        for path in sorted(place.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            status = path.stat()
            if path.name.startswith(UNFINISHED):
                if time.time() - status.st_mtime > STALE_SECONDS:
                    path.unlink()
                continue
            room -= status.st_size
            if room < 0:
                path.unlink()
