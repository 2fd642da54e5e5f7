"""What a comparison has measured so far, in a file that is written anew after every run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from dapo_openrlhf.bench.arm import Arm, Measurement
from dapo_openrlhf.bench.result import Result, summarise
from dapo_openrlhf.whole_file import write_whole


@dataclass(frozen=True)
class _Arm:
    key: str
    name: str
    devices: int
    measured: Annotated[list[Measurement], Field(min_length=1)]


@dataclass(frozen=True)
class _File:
    """What a file must hold; other figures of it follow from these."""

    work: dict[str, Any]
    arms: list[_Arm]


_FILE = TypeAdapter(_File)


class RecordUnreadable(ValueError):
    """A file holds no record, or one of other work; the message says which."""


@dataclass(slots=True, kw_only=True)
class Record:
    """The runs of each arm, and what all of them had to do."""

    file: Path
    work: Mapping[str, Any]
    """Everything that figures depend on besides the arm; runs with other work cannot be compared."""
    machine: Mapping[str, Any]
    arms: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Each arm's name in the table and number of devices, by its key."""
    runs: dict[str, list[Measurement]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of runs, of all arms together."""
        return sum(map(len, self.runs.values()))

    def results(self) -> dict[str, Result]:
        """A summary of each arm."""
        return {key: summarise(self.arms[key][0], runs, devices=self.arms[key][1]) for key, runs in self.runs.items()}

    def add(self, key: str, arm: Arm, run: Measurement) -> None:
        """Keep a run, and write the file. Raises ``whole_file.Unwritable``."""
        self.arms[key] = arm.name, arm.devices
        self.runs.setdefault(key, []).append(run)
        self.write()

    def write(self) -> None:
        """Write the file in one piece. Raises ``whole_file.Unwritable``."""
        arms = [
            {"key": key, **result.as_dict(), "measured": [asdict(run) for run in self.runs[key]]}
            for key, result in self.results().items()
        ]
        written = {"machine": self.machine, "work": self.work, "arms": arms}
        write_whole(self.file, json.dumps(written, indent=2, ensure_ascii=False) + "\n")

    def take(self, file: Path) -> None:
        """Take over the runs of a file that was written for the same work. Raises :class:`RecordUnreadable`."""
        try:
            found = _FILE.validate_json(file.read_bytes())
        except OSError as error:
            raise RecordUnreadable(f"{file} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            words = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))  # no place is the whole
            raise RecordUnreadable(f"{file} holds no runs of a bench: {words}") from error
        work = found.work
        mine = json.loads(json.dumps(self.work))
        if other := sorted(key for key in {*mine, *work} if mine.get(key) != work.get(key)):
            words = "; ".join(f"{key} was {work.get(key)}, and is {mine.get(key)}" for key in other[:3])
            raise RecordUnreadable(f"{file} is of other work: {words}")
        for arm in found.arms:
            self.runs[arm.key] = arm.measured
            self.arms[arm.key] = arm.name, arm.devices
