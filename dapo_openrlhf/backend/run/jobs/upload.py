"""The files of a working directory that a submission uploads."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError

NOT_UPLOADED = (".git", ".venv", ".cache", "runs", "**/__pycache__")
"""What is never uploaded, besides what .gitignore and .rayignore name."""
MOST_BYTES = 100 << 20
"""Largest upload; Ray's dashboard takes no more in one request."""
SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A folder, and those of its files that are uploaded."""

    root: Path
    sizes: dict[Path, int]
    """Bytes by path below the root."""

    @property
    def total(self) -> int:
        """Bytes of all files, before they are packed."""
        return sum(self.sizes.values())


def upload_of(root: Path, excludes: Sequence[str] = ()) -> Upload:
    """What Ray would upload of a folder. Raises ``ConfigError`` for what is no folder, and for too much."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    if not root.is_dir():
        raise ConfigError(f"--working-dir: there is no folder {root}")
    sizes: dict[Path, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root)] = path.stat().st_size

    _dir_travel(
        root,
        [_get_excludes(root, [*NOT_UPLOADED, *excludes])],
        add,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.getLogger("dapo_openrlhf.unheard"),
    )
    upload = Upload(root=root, sizes=sizes)
    if upload.total > MOST_BYTES:
        raise ConfigError(_too_large(upload))
    return upload


def _too_large(upload: Upload) -> str:
    largest = sorted(upload.sizes.items(), key=lambda item: item[1], reverse=True)[:SHOWN]
    lines = [f"  {size / 1e6:10,.1f} MB  {path}" for path, size in largest]
    return "\n".join(
        [
            f"--working-dir: {upload.root} has {upload.total / 1e6:,.0f} MB to upload, and a cluster takes at most "
            f"{MOST_BYTES / 1e6:,.0f} MB; put models and data where the cluster sees them, or name what is not needed in "
            ".gitignore or .rayignore; the largest:",
            *lines,
        ]
    )
