"""Where the environment is, and what a set-up may say about its end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda"]

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SUPPORTED_PYTHONS = ("3.11", "3.12")


class SetupError(Exception):
    """The set-up cannot go on; the message is for the user."""


@dataclass(frozen=True)
class Place:
    """A checkout and the ``.venv`` inside it."""

    root: Path

    @property
    def venv(self) -> Path:
        """The environment's folder."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.venv / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Where packages are installed."""
        return self.venv / "lib" / f"python{PYTHON_VERSION}" / "site-packages"

    @property
    def log(self) -> Path:
        """Everything that pip and the other commands print."""
        return self.venv / "setup.log"

    @property
    def locks(self) -> Path:
        """The lists of pinned packages."""
        return self.root / "scripts" / "lock"
