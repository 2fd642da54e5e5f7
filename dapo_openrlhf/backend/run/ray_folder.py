"""The folder for Ray's sockets and logs. Paths of Unix sockets end at 107 bytes, of which Ray takes more than half."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError

SOCKET_BYTES = 107
"""The longest path of a Unix socket on Linux, without its closing zero."""
UNDER_IT = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99"
"""The longest that Ray puts below the folder, with the largest process id that Linux gives."""
LONGEST = SOCKET_BYTES - len(UNDER_IT)
"""Bytes that the folder's own path may have."""


def ray_folder(say: Callable[[str], None]) -> Path:
    """``ray`` in ``RAY_TMPDIR``, else in ``TMPDIR``, else in a short folder of the system, which is said.

    Raises ``ConfigError`` when ``RAY_TMPDIR`` cannot hold it, or nothing can.
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
    """Where else they may go; a folder of this user's own, should another user's be in the way."""
    mine = f"ray-{os.getuid()}"
    return Path("/tmp/ray"), Path("/tmp") / mine, Path("/var/tmp") / mine, Path("/dev/shm") / mine


def _trouble(folder: Path) -> str:
    """Why a folder cannot be Ray's; nothing when it can."""
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
