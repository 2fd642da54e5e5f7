"""Listens to a run's event log and passes events and a row of numbers per step to sinks (standard library)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Event, GroupDispatched, StepDone
from dapo_openrlhf.pipeline.losses import EngineLosses
from dapo_openrlhf.pipeline.metrics import Row, StepMetrics


class Sink:
    """A destination for reports on a run. Subclasses override only the methods that they need."""

    def event(self, event: Event) -> None:
        """Take in an event."""

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Take in the numbers of rollout step ``step``, from 0, done ``elapsed`` seconds after the first dispatch."""

    def close(self) -> None:
        """Finish the report, as the run has ended or failed."""


class Recorder:
    """Turns a run's events into rows as they occur."""

    def __init__(self, log: EventLog, sinks: Sequence[Sink], *, devices: int) -> None:
        """``devices``: number of devices of engines and trainer ranks together. Sinks are called in their order."""
        self._log = log
        self._sinks = sinks
        self._devices = devices
        self._metrics: StepMetrics | None = None
        self._since = 0.0
        self._rows: list[Row] = []
        self.losses = EngineLosses()
        log.listen(self._listen)

    def _listen(self, event: Event) -> None:
        if self._metrics is None and isinstance(event, GroupDispatched):
            self._since = self._log.now()
            self._metrics = StepMetrics(started=self._since, devices=self._devices)
        if self._metrics is not None:
            self._metrics.add(event)
        self.losses.add(event)
        for sink in self._sinks:
            sink.event(event)
        if isinstance(event, StepDone):
            self._step(event.step)

    def _step(self, step: int) -> None:
        assert self._metrics is not None
        now = self._log.now()
        row = self._metrics.row(now=now)
        self._rows.append(row)
        for sink in self._sinks:
            sink.step(step, row, now - self._since)

    def tokens(self, kind: str) -> int:
        """Number of response tokens over all steps; ``kind`` is ``generated`` or ``trained``."""
        return round(sum(row[f"tokens_per_second/{kind}"] * row["seconds/step"] for row in self._rows))

    def close(self) -> None:
        """Close every sink, even if one fails."""
        with contextlib.ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(sink.close)
