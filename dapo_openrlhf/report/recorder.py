"""Listens to a run's event log and passes events and a row of numbers per step to sinks (standard library)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import Event, GroupDispatched, Rewound, StepDone
from dapo_openrlhf.pipeline.losses import EngineLosses
from dapo_openrlhf.pipeline.metrics import Row, StepMetrics
from dapo_openrlhf.report.step_rows import StepRows
from dapo_openrlhf.report.verdict import Verdict, verdict


class Sink:
    """A destination for reports on a run. Subclasses override only the methods that they need, and the name."""

    name = "a report"
    """What the sink writes, in words for the user."""

    def event(self, event: Event) -> None:
        """Take in an event."""

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Take in the numbers of rollout step ``step``, from 0, done ``elapsed`` seconds after the first dispatch."""

    def close(self) -> None:
        """Finish the report, as the run has ended or failed."""


class Recorder:
    """Turns a run's events into rows as they occur. A sink that fails never ends the run."""

    def __init__(
        self, log: EventLog, sinks: Sequence[Sink], *, devices: int, warn: Callable[[str], None] = print
    ) -> None:
        """``devices``: number of devices of engines and trainer ranks together. Sinks are called in their order.

        ``warn`` gets a message when a sink cannot write, once for each sink.
        """
        self._log = log
        self._sinks = sinks
        self._devices = devices
        self._warn = warn
        self._warned: set[Sink] = set()
        self._metrics: StepMetrics | None = None
        self._since: float | None = None
        self._rows = StepRows()
        self._restarts = 0
        self.losses = EngineLosses()
        log.listen(self._listen)

    def _listen(self, event: Event) -> None:
        if self._metrics is None and isinstance(event, GroupDispatched):
            now = self._log.now()
            self._since = now if self._since is None else self._since
            self._metrics = StepMetrics(started=now, devices=self._devices, restarts=self._restarts)
        if self._metrics is not None:
            self._metrics.add(event)
        self.losses.add(event)
        self._each(lambda sink: sink.event(event))
        if isinstance(event, StepDone):
            self._step(event.step)
        if isinstance(event, Rewound):
            self._rewind(event)

    def _rewind(self, event: Rewound) -> None:
        """Forget what was undone; the next row counts from the first dispatch after it."""
        self._metrics = None
        self._restarts += event.restart > 0
        self._rows.forget_from(event.to_step)

    def _step(self, step: int) -> None:
        assert self._metrics is not None and self._since is not None
        now = self._log.now()
        row = self._metrics.row(now=now)
        self._rows.put(step, row)
        seconds = now - self._since
        self._each(lambda sink: sink.step(step, row, seconds))

    def tokens(self, kind: str) -> int:
        """Number of response tokens over all steps that were not undone; ``kind`` is ``generated`` or ``trained``."""
        return round(sum(row[f"tokens_per_second/{kind}"] * row["seconds/step"] for row in self._rows.there()))

    def verdict(self, *, max_staleness: int) -> Verdict | None:
        """What limited the steps that were not undone; None where that is not known."""
        return verdict(list(self._rows.there()), max_staleness=max_staleness)

    def close(self) -> None:
        """Close every sink, even if one cannot write."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        """Call every sink, also one that could not write before: space may be free again."""
        for sink in self._sinks:
            try:
                call(sink)
            except Exception as error:
                if sink not in self._warned:
                    self._warned.add(sink)
                    self._warn(f"warning: {sink.name} cannot be written, and the run goes on without: {_cause(error)}")


def open_sinks(makers: Sequence[Callable[[], Sink]], *, warn: Callable[[str], None]) -> list[Sink]:
    """Make every sink; one that cannot be made is left out, and ``warn`` gets a message."""
    sinks = []
    for make in makers:
        try:
            sinks.append(make())
        except Exception as error:
            warn(f"warning: a report cannot be written, and the run goes on without: {_cause(error)}")
    return sinks


def _cause(error: Exception) -> str:
    """What the file system says speaks for itself; what else a library raises may not."""
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
