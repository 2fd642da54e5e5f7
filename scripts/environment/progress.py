"""What a ``.venv`` was made for and how far its set-up came."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from environment.place import Device, Place


@dataclass
class Progress:
    """What ``.venv`` was made for and which phases it has behind it."""

    base: list[str]
    """Device, Python version and place. A ``.venv`` with another base is removed."""
    contents: str
    """Hash of the lists of packages, of setup.cfg and of the set-up. With other contents every phase runs again."""
    done: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, place: Place) -> Progress | None:
        """Read what the last set-up left behind."""
        for name in (".complete", ".progress"):
            try:
                return cls(**json.loads((place.venv / name).read_text()))
            except (OSError, ValueError, TypeError):
                continue
        return None

    @property
    def device(self) -> Device:
        """The device this environment was made for."""
        return "cuda" if self.base[0] == "cuda" else "cpu"

    def save(self, place: Place) -> None:
        """Record the phases done so far; the environment is not complete yet."""
        (place.venv / ".progress").write_text(json.dumps(asdict(self)))
        (place.venv / ".complete").unlink(missing_ok=True)

    def finish(self, place: Place) -> None:
        """Record that the environment is complete."""
        self.save(place)
        (place.venv / ".progress").replace(place.venv / ".complete")

    def covers(self, place: Place, target: Progress, phases: Iterable[str]) -> bool:
        """Whether this set-up came to its end, for the same purpose and with all of these phases."""
        return (
            (place.venv / ".complete").exists()
            and place.python.exists()
            and (self.base, self.contents) == (target.base, target.contents)
            and {*phases} <= {*self.done}
        )
