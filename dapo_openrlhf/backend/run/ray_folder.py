"""Chooses the folder for Ray's sockets and logs.

Paths of Unix sockets have at most 107 bytes, of which Ray takes more than half.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError

SOCKET_BYTES = 107
"""Maximum length of a Unix socket's path on Linux in bytes, without the terminating zero."""
UNDER_IT = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99"
"""The longest path that Ray creates below the folder, with the largest process id of Linux."""
LONGEST = SOCKET_BYTES - len(UNDER_IT)
"""Maximum length of the folder's own path, in bytes."""


def ray_folder(say: Callable[[str], None]) -> Path:
    """``ray`` in ``RAY_TMPDIR``, else in ``TMPDIR``, else in a short system folder, which ``say`` is told.

    Raises ``ConfigError`` if ``RAY_TMPDIR`` cannot hold Ray's files, or if no folder can.
    """
    if asked := os.environ.get("RAY_TMPDIR"):
        if trouble := _trouble(Path(asked) / "ray"):
            raise ConfigError(f"RAY_TMPDIR: {asked} cannot hold Ray's sockets: {trouble}; name another folder")
        return Path(asked) / "ray"
    wanted = Path(os.environ.get("TMPDIR") or "/tmp") / "ray"
    trouble = _trouble(wanted)
    if not trouble:
        return wanted
    for folder in _others():
        if not _trouble(folder):
            say(f"{wanted.parent} cannot hold Ray's sockets: {trouble}; they go to {folder} (RAY_TMPDIR names another)")
            return folder
    raise ConfigError(f"{wanted.parent} cannot hold Ray's sockets: {trouble}; name another folder in RAY_TMPDIR")


def _others() -> tuple[Path, ...]:
    """Alternative folders for sockets and logs; if another user's folder is in the way, a folder of this user's own."""
    mine = f"ray-{os.getuid()}"
    return Path("/tmp/ray"), Path("/tmp") / mine, Path("/var/tmp") / mine, Path("/dev/shm") / mine


def _trouble(folder: Path) -> str:
    """The reason why a folder cannot hold Ray's files; empty if it can."""
    if not folder.is_absolute():
        return "it is no absolute path"
    if (length := len(os.fsencode(folder))) > LONGEST:
        return f"with ray/ its path has {length} bytes, and {LONGEST} are the most that leave room for the names of sockets"
    if not folder.parent.is_dir():
        return "there is no such folder"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error.strerror)
