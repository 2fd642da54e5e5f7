"""Writes files and folders atomically: under another name first, then renamed (standard library only).

A reader sees either the old or the new content and nothing in between, even if the writing process is killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Prefix of the names of files and folders that are being written or removed; those left after a kill are not in
use."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a free path beside ``path``. What the block writes there (file, folder or link) then takes the place of
    ``path``.

    If the block raises, ``path`` stays as it is, and what was written is removed. Several processes may write the same
    file at once; the last one's stays.
    """
    unfinished = path.with_name(f"{UNFINISHED}{path.name}.{secrets.token_hex(4)}")
    try:
        yield unfinished
        put_in_place(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically; text as UTF-8."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a finished file or folder to ``path``, in the same file system.

    A folder replaces a folder. Raises ``OSError`` where only one of the two is a folder.
    """
    if not _is_folder(finished):
        os.rename(finished, path)
        return
    old = path.with_name(f"{UNFINISHED}{path.name}")
    if _is_folder(path):  # no rename replaces a folder that is not empty
        _remove(old)
        os.rename(path, old)
    os.rename(finished, path)
    _remove(old)


def remove_whole(path: Path) -> None:
    """Remove a folder, renaming it first, so that a half-removed folder never counts as complete."""
    doomed = path.with_name(f"{UNFINISHED}{path.name}")
    _remove(doomed)
    os.rename(path, doomed)
    _remove(doomed)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
