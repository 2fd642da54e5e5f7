"""Files and folders that appear in one piece: written under another name, then renamed (standard library only).

A reader, and a process that is killed meanwhile, see what was there before or what is there now, and nothing in between.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
"""What the names begin with of what is being written or removed; after a kill such a name may be left, and is in no use."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a free path beside ``path``. What the block writes there, a file, a folder or a link, is then put in its place.

    If the block raises, ``path`` stays as it is, and what was written is removed. Several may write the same file at
    once: the last one's stays.
    """
    unfinished = path.with_name(f"{UNFINISHED}{path.name}.{secrets.token_hex(4)}")
    try:
        yield unfinished
        put_in_place(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one piece; text as UTF-8."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def put_in_place(finished: Path, path: Path) -> None:
    """Rename what is written to ``path``, in the same file system. A folder that was there is removed."""
    old = path.with_name(f"{UNFINISHED}{path.name}")
    if path.is_dir() and not path.is_symlink():  # a rename replaces files and links only
        _remove(old)
        os.rename(path, old)
    os.rename(finished, path)
    _remove(old)


def remove_whole(path: Path) -> None:
    """Remove a folder, of which half would otherwise count as a whole: its name goes first."""
    doomed = path.with_name(f"{UNFINISHED}{path.name}")
    _remove(doomed)
    os.rename(path, doomed)
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
