"""The files that a command is told to write: checked before the work begins, and written in one piece after it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.whole_file import write_whole

PICTURES = ("", ".png", ".svg", ".pdf")
"""Endings of the pictures that can be drawn; without one it is a PNG."""


def check_output(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written. Raises ``ConfigError`` that names the option."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written: it is a folder; name a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() and not path.is_file() else path.parent, os.W_OK):
        raise ConfigError(f"{option}: {path} cannot be written: {path.parent} may only be read; name another folder")


def check_picture(option: str, path: Path | None) -> None:
    """Refuse a picture that cannot be written, or of another kind than can be drawn. Raises ``ConfigError``."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{option}: {path} is no picture that can be drawn; name a file in .png, .svg or .pdf")
    check_output(option, path)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one piece. Raises :class:`~dapo_openrlhf.whole_file.Unwritable`."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
