"""Whether there is room for an environment, before anything is downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from environment.place import Place, SetupError

Build = Literal["cpu", "cuda build on a cpu", "cuda"]


@dataclass(frozen=True)
class Room:
    """What an environment takes, in units of 1e9 bytes."""

    environment: float
    """Space in ``.venv``."""
    downloads: float
    """Space in pip's cache; nothing where it is switched off."""
    largest: float
    """Space in the folder for temporary files, where pip keeps a package while it installs it."""


NEEDED: Mapping[Build, Room] = {
    "cpu": Room(environment=3.0, downloads=0.9, largest=0.4),
    "cuda build on a cpu": Room(environment=5.9, downloads=3.0, largest=2.4),
    "cuda": Room(environment=13.0, downloads=5.5, largest=4.0),
}


def size_of(folder: Path) -> int:
    """Bytes that a folder takes on the disk; files with several names count, because they would stay."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_blocks * 512 for parent, _, names in os.walk(folder) for name in names
    )


def cache_folder() -> Path | None:
    """Where pip keeps what it has downloaded; None where the user has switched that off."""
    if os.environ.get("PIP_NO_CACHE_DIR", "").lower() not in ("", "0", "false", "off", "no"):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PIP_CACHE_DIR") or home / "pip")


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there already."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_bytes(path: Path) -> int:
    """What a user may still write where this path is."""
    return shutil.disk_usage(path).free


def check_room(place: Place, build: Build, *, free: Callable[[Path], int] = free_bytes) -> None:
    """Raise ``SetupError`` naming each file system with too little room.

    What ``.venv`` holds already counts: it stays, or is removed first. ``free``: bytes free at a path.
    """
    room = NEEDED[build]
    present = size_of(place.venv) if place.venv.exists() else 0
    wanted = [(place.venv, max(0.0, room.environment - present / 1e9)), (Path(tempfile.gettempdir()), room.largest)]
    if cache := cache_folder():
        wanted.append((cache, room.downloads))
    by_disk: dict[int, list[tuple[Path, float]]] = defaultdict(list)
    for path, size in wanted:
        by_disk[existing(path).stat().st_dev].append((path, size))
    short = []
    for shares in by_disk.values():
        needed, there = sum(size for _, size in shares), free(existing(shares[0][0])) / 1e9
        if there < needed:
            parts = " + ".join(f"{size:.1f} in {path}" for path, size in shares if size)
            short.append(f"{needed:.1f} GB are needed ({parts}), {there:.1f} GB are free.")
    if short:
        remedy = "Make room, or move pip's files with TMPDIR and PIP_CACHE_DIR (or PIP_NO_CACHE_DIR=1)."
        raise SetupError("\n".join([f"There is too little room for the packages ({build}).", *short, remedy]))
