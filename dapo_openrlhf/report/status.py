"""The status of a run in a few numbers, for whoever asks how far it is (standard library only)."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from dapo_openrlhf.pipeline.events import Event
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.whole_file import write_whole

FILE = "status.json"
PREFIX = "dapo."
"""Beginning of the names that are published, beside those of others."""
RECENT_STEPS = 20


class Publish(Protocol):
    """Tells the status elsewhere."""

    def __call__(self, values: Mapping[str, str], *, last: bool = False) -> None:
        """Take the status as text by name; ``last``: there may be no further one."""
        ...


def nowhere(values: Mapping[str, str], *, last: bool = False) -> None:
    """Publish nothing."""


class Status(Sink):
    """Writes ``status.json`` in the run's folder after every step, and publishes the same."""

    name = "the status"

    def __init__(
        self,
        folder: Path,
        *,
        max_steps: int,
        first_step: int,
        job: str = "",
        publish: Publish = nowhere,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``first_step``: number of steps done before; ``job``: id of the job that runs it, if one does."""
        self._path = folder / FILE
        self._publish = publish
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._values: dict[str, object] = {
            "run": str(folder.resolve()),
            "job": job,
            "state": "starting",
            "step": first_step,
            "max_steps": max_steps,
        }
        self._write()

    def event(self, event: Event) -> None:
        """Publish the first status once the run has joined its cluster, of which the first event tells."""
        if self._values["state"] == "starting":
            self._values["state"] = "running"
            self._write()

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Take in the numbers of a step, from 0."""
        if math.isfinite(seconds := row.get("seconds/step", math.nan)):
            self._recent.append(seconds)
        left = int(str(self._values["max_steps"])) - step - 1
        numbers = {
            "accuracy": row.get("accuracy"),
            "held_out": row.get("eval/accuracy", self._values.get("held_out")),
            "tokens_per_second": row.get("tokens_per_second/trained"),
            "seconds_left": max(0, left) * statistics.median(self._recent) if self._recent else None,
        }
        self._values |= {name: value for name, value in numbers.items() if _is_number(value)}
        self._values["step"] = step + 1
        self._write(last=left <= 0)  # when the run is closed it has left its cluster

    def close(self) -> None:
        """Say that the run has ended."""
        self._values |= {"state": "ended"}
        self._write(last=True)

    def _write(self, *, last: bool = False) -> None:
        self._values["updated"] = self._clock()
        write_whole(self._path, json.dumps(self._values, indent=2) + "\n")
        values = {f"{PREFIX}{name}": str(value) for name, value in self._values.items() if name != "job"}
        self._publish(values, last=last)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_status(folder: Path) -> dict[str, str]:
    """A run's status as text by name; empty where it has none."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, dict) else {}
