"""The settings of environment processes (standard library only)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """A user's environment and the limits it runs under."""

    file: str
    """Path of the Python file, absolute, so that every process finds it."""
    timeout: float = 30.0
    """Seconds that ``reset`` and each ``step`` may take. While another episode computes in the same process, an
    episode's time stands still."""
    memory: int = 2048
    """MiB of memory that a process may take beyond what it holds once the file is loaded."""
    processes: int = 2
    """Number of processes, each with many episodes at once."""
    start_timeout: float = 120.0
    """Seconds that loading the file may take."""
    idle: float = 3600.0
    """Seconds after which an episode that nobody asks for a step is closed."""

    @property
    def name(self) -> str:
        """The name that messages use for the environment."""
        return Path(self.file).name

    def to_json(self) -> str:
        """The settings as JSON for :meth:`from_json` in an environment process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that :meth:`to_json` has written down."""
        return cls(**json.loads(text))
