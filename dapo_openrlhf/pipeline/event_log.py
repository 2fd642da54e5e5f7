"""The event log: one JSON line per event, written and read back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dapo_openrlhf.pipeline import events
from dapo_openrlhf.pipeline.event_file import Line, read_lines
from dapo_openrlhf.pipeline.events import UNWRITTEN, Event, SetEvaluated
from dapo_openrlhf.types import PolicyVersion, Span

Listener = Callable[[Event], None]


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


KINDS: Mapping[str, type[Event]] = {
    _snake(name): kind
    for name, kind in vars(events).items()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
"""The class of every event by its name in the log."""

NAMES: Mapping[type[Event], str] = {kind: name for name, kind in KINDS.items()}

WRITTEN: Mapping[type[Event], tuple[str, ...]] = {
    kind: tuple(field.name for field in dataclasses.fields(kind) if not field.metadata.get(UNWRITTEN)) for kind in NAMES
}
"""The fields of each event that are written to the log."""


class Lines(Protocol):
    """What a log is written to: a text file, or a :class:`~dapo_openrlhf.pipeline.event_file.LogFile`."""

    def write(self, text: str, /) -> int:
        """Take in a line."""

    def flush(self) -> None:
        """Write out what was taken in."""


class EventLog:
    """Writes events to a file as they happen and hands them to listeners.

    ``clock`` gives seconds; lines carry ``time`` relative to the log's creation, the event's name as ``event`` and its
    fields. Every line is flushed at once, so that a run that dies leaves a complete log.
    """

    def __init__(self, file: Lines | None, *, clock: Callable[[], float]) -> None:
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
            fields = {name: _plain(getattr(event, name)) for name in WRITTEN[type(event)]}
            line = {"time": round(self.now(), 6), "event": NAMES[type(event)], **fields}
            self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
            self._file.flush()
        for listener in self._listeners:
            listener(event)


def _plain(value: object) -> object:
    """A value in a form that JSON can hold: mappings as objects, numbers that are not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Span):
        return {"worker": value.worker, "kind": value.kind, "start": value.start, "end": value.end}
    if isinstance(value, SetEvaluated):
        return _plain(dataclasses.asdict(value))
    return value


class EventLogError(ValueError):
    """A line of a log is not an event; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Logged:
    """An event as it stands in a log."""

    time: float
    """Seconds since the log's creation: the last :class:`~dapo_openrlhf.pipeline.events.RunStarted` before it."""
    event: Event


def read(path: Path) -> Iterator[Logged]:
    """The events of a log and of its older parts, in their order; NaN where a number was not finite.

    A last line without a line end is left out: the run was killed while writing it, or is writing it now. Raises
    :class:`EventLogError` for any other line that is not an event, and for an event or field unknown to this version.
    """
    for found in read_around(path):
        if isinstance(found, EventLogError):
            raise found
        yield found


def read_around(path: Path) -> Iterator[Logged | EventLogError]:
    """The same with an error in place of each line for which :func:`read` raises it."""
    for line in read_lines(path):
        yield _read(line)


def read_what_is_left(path: Path, damaged: Callable[[int], None]) -> Iterator[Logged]:
    """The events of a log as :func:`read` gives them, without lines that are none.

    ``damaged`` gets their numbers, from 1, as if the log were one file.
    """
    for number, line in enumerate(read_lines(path), start=1):
        found = _read(line)
        if isinstance(found, EventLogError):
            damaged(number)
        else:
            yield found


def _read(line: Line) -> Logged | EventLogError:
    where = f"{line.file}, line {line.number}"
    if line.trouble is not None:
        return EventLogError(f"{where}: {line.trouble}")
    try:
        return _logged(json.loads(line.text))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        return EventLogError(f"{where}: no event of this version: {error!r}")


def _logged(line: Any) -> Logged:
    fields = dict(_mapping(line))
    time, name = fields.pop("time"), fields.pop("event")
    kind, readers = KINDS[name], FIELDS[name]
    return Logged(_number(time), kind(**{field: readers[field](value) for field, value in fields.items()}))


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no mapping")
    return value


def _exactly(kind: type) -> Callable[[Any], object]:
    def read_value(value: Any) -> object:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value

    return read_value


def _set_evaluated(values: Mapping[str, Any]) -> SetEvaluated:
    return SetEvaluated(**{**values, "accuracy": _number(values["accuracy"])})


_READERS: Mapping[object, Callable[[Any], object]] = {
    float: _number,
    int: _exactly(int),
    bool: _exactly(bool),
    str: _exactly(str),
    PolicyVersion: _exactly(int),
    Mapping[str, float]: lambda value: {name: _number(item) for name, item in _mapping(value).items()},
    Mapping[str, int]: _mapping,
    Mapping[str, SetEvaluated]: lambda value: {
        key: _set_evaluated(_mapping(one)) for key, one in _mapping(value).items()
    },
    tuple[int, ...]: lambda value: tuple(map(_exactly(int), value)),
    tuple[Span, ...]: lambda value: tuple(Span(**span) for span in value),
}
"""For the declared type of a field, the function that restores its value from JSON."""

FIELDS: Mapping[str, Mapping[str, Callable[[Any], object]]] = {
    name: {field: _READERS[typing.get_type_hints(kind)[field]] for field in WRITTEN[kind]}
    for name, kind in KINDS.items()
}
"""For each event by its name, the functions that restore the values of its fields from JSON."""
