"""Makes the folder for Ray's sockets and logs.

Paths of Unix sockets have at most 107 bytes, of which Ray takes more than half.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError

SOCKET_BYTES = 107
"""Maximum length of a Unix socket's path on Linux in bytes, without the terminating zero."""
UNDER_IT = "/ray-01234567/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99"
"""The longest path that Ray creates below the place, with the largest process id of Linux."""
LONGEST = SOCKET_BYTES - len(UNDER_IT)
"""Maximum length of the place's own path, in bytes."""


@contextmanager
def private_folder(say: Callable[[str], None]) -> Iterator[Path]:
    """A new folder that only this user can enter, for the block; Ray itself makes ``ray`` in it and opens that to all.

    It is made in ``RAY_TMPDIR``, else in ``TMPDIR``, else in a short system folder, which ``say`` is told. Raises
    ``ConfigError`` if ``RAY_TMPDIR`` cannot hold Ray's files, or if no folder can.
    """
    folder = _make(say)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make(say: Callable[[str], None]) -> Path:
    if asked := os.environ.get("RAY_TMPDIR"):
        made = _try(Path(asked))
        if isinstance(made, str):
            raise ConfigError(f"RAY_TMPDIR: {asked} cannot hold Ray's sockets: {made}; name another folder")
        return made
    wanted = Path(os.environ.get("TMPDIR") or "/tmp")
    made = _try(wanted)
    if isinstance(made, Path):
        return made
    trouble = f"{wanted} cannot hold Ray's sockets: {made}"
    for place in _others():
        made = _try(place)
        if isinstance(made, Path):
            say(f"{trouble}; they go to {place} (RAY_TMPDIR names another)")
            return made
    raise ConfigError(f"{trouble}; name another folder in RAY_TMPDIR")


def _others() -> tuple[Path, ...]:
    """Alternative places for sockets and logs."""
    return Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")


def _try(place: Path) -> Path | str:
    """A new folder in ``place``, or the reason why it cannot hold Ray's files."""
    if not place.is_absolute():
        return "it is no absolute path"
    if (length := len(os.fsencode(place))) > LONGEST:
        return f"its path has {length} bytes, and {LONGEST} are the most that leave room for the names of sockets"
    if not place.is_dir():
        return "there is no such folder"
    try:
        return Path(tempfile.mkdtemp(prefix="ray-", dir=place))
    except OSError as error:
        return str(error.strerror)
