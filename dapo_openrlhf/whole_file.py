"""Writes files and folders atomically: under another name first, then renamed (standard library only).

A reader sees either the old or the new content and nothing in between, even if the writing process is killed. What
appears may be read by whom the user's umask lets, also if a library has made it private (safetensors does).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
"""Prefix of the names of files and folders that are being written or removed; those left after a kill are not in
use."""

REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have your quota raised",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "name a place that is mounted for writing, or mount it so",
    errno.EACCES: "name a place that you may write to, or have its permissions changed",
    errno.EPERM: "name a place that you may write to, or have its permissions changed",
    errno.ENOENT: "its folder is gone; leave a folder in use where it is",
    errno.ENOTDIR: "its folder is gone, and a file is in its place; leave a folder in use where it is",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "a file, or a link that leads nowhere, is where its folder should be; name another place",
    errno.ELOOP: "a link on the way there leads to itself; mend it, or name another place",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EIO: "look at the disk, and at the kernel's log",
    errno.ESTALE: "its folder is gone from the file server; leave a folder in use where it is",
}
"""What a user can do about an error of the file system."""

DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
"""Folders whose files are written as they are and never replaced."""


class Unwritable(OSError):
    """A file or folder could not be written; the message names its path, the cause and the remedy."""

    def __init__(self, path: Path, number: int) -> None:
        """``number``: the error of the file system, one of :data:`REMEDIES`."""
        super().__init__(number, os.strerror(number), str(path))
        self.path = path

    def __reduce__(self) -> tuple[type[Unwritable], tuple[Path, int | None]]:
        return Unwritable, (self.path, self.errno)

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}; {REMEDIES[self.errno or errno.EIO]}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system in the block into an :class:`Unwritable` that names ``path``.

    Errors that name a file elsewhere than in the folder of ``path``, below ``path`` or above it, are not changed.
    """
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        if error.errno is None or error.errno not in REMEDIES or not _concerns(error, path):
            raise
        raise Unwritable(path, error.errno) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error names a file near ``path``, or none, as errors in the middle of a file do."""
    if not isinstance(error.filename, str | os.PathLike):
        return error.filename is None and error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT)
    named, path = Path(error.filename).absolute(), path.absolute()
    return named.is_relative_to(path.parent) or path.is_relative_to(named)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Lend a free path beside ``path``. What the block writes there (file, folder or link) then takes the place of
    ``path``.

    If the block raises, ``path`` stays as it is, and what was written is removed. Several processes may write the same
    file at once; the last one's stays. A device or a pipe, such as ``/dev/stdout``, is lent itself. Raises
    :class:`Unwritable`.
    """
    if _is_device(path):
        with writing(path):
            yield path
        return
    unfinished = path.with_name(f"{UNFINISHED}{path.name}.{secrets.token_hex(4)}")
    try:
        with writing(path):
            yield unfinished
            put_in_place(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):  # of a folder that is gone, or may only be read
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
    _permit(finished, _umask())
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


def remove_unfinished(folder: Path) -> None:
    """Remove what was being written in a folder, or below it, when the writing was broken off; nothing may write now."""
    for path in [*folder.rglob(f"{UNFINISHED}*"), *folder.glob("*.unfinished")]:
        with contextlib.suppress(OSError):
            _remove(path)


def _is_device(path: Path) -> bool:
    return path.absolute().parent in DEVICES or (path.exists() and not path.is_file() and not path.is_dir())


def _permit(path: Path, umask: int) -> None:
    """Add the permissions that the umask leaves to a file, or to a folder and all that is in it; links stay as they are."""
    if path.is_symlink():
        return
    add = (0o777 if path.is_dir() else 0o666) & ~umask
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode | add != mode:
        path.chmod(mode | add)
    if path.is_dir():
        for part in path.iterdir():
            _permit(part, umask)


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
