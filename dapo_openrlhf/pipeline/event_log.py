"""The event log: one JSON line per event."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TextIO

from dapo_openrlhf.pipeline.events import Event
from dapo_openrlhf.types import Span

Listener = Callable[[Event], None]


class EventLog:
    """Writes events to a file as they happen and hands them to listeners.

    ``clock`` gives seconds; lines carry ``time`` relative to the log's creation, the event's name as ``event`` and its
    fields. Lines are written through at once, so that a run that dies leaves its log whole.
    """

    def __init__(self, file: TextIO | None, *, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._start = clock()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with every later event."""
        self._listeners.append(listener)

    def now(self) -> float:
        """Seconds since the log's creation."""
        return self._clock() - self._start

    def emit(self, event: Event) -> None:
        """Record one event."""
        if self._file is not None:
            fields = {field.name: _plain(getattr(event, field.name)) for field in dataclasses.fields(event)}
            line = {"time": round(self.now(), 6), "event": _snake(type(event).__name__), **fields}
            self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
            self._file.flush()
        for listener in self._listeners:
            listener(event)


def _plain(value: object) -> object:
    """What JSON can hold: mappings as objects, numbers that are not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Span):
        return {"worker": value.worker, "kind": value.kind, "start": value.start, "end": value.end}
    return value


@functools.cache
def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
