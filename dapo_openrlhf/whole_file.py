"""Writes files and folders atomically: under another name first, then renamed (standard library only).

A reader sees either the old or the new content and nothing in between, even if the writing process is killed. What
appears may be read by whom the user's umask lets, also if a library has made it private (safetensors does).
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
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
    """Rename a finished file or folder to ``path``, in the same file system, with the permissions of the umask.

    A folder replaces a folder. Raises ``OSError`` where only one of the two is a folder.
    """
    _permit(finished)
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


def _permit(path: Path) -> None:
    """Add the permissions that the umask leaves to a file, or to a folder and all that is in it; links stay as they are."""
    if path.is_symlink():
        return
    add = (0o777 if path.is_dir() else 0o666) & ~_umask()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode | add != mode:
        path.chmod(mode | add)
    if path.is_dir():
        for part in path.iterdir():
            _permit(part)


def _umask() -> int:
    """This process's umask; reading it from the kernel changes it for no other thread meanwhile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
