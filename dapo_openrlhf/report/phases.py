"""What a run is waiting for, by its events (standard library only)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Event,
    GroupDispatched,
    GroupFailed,
    GroupJudged,
    StepDone,
    StepTrained,
)
from dapo_openrlhf.report.recorder import Sink

WaitingFor = Callable[[Callable[[], str]], AbstractContextManager[None]]


class Phases(Sink):
    """Declares at any time what the run waits for: its start, a batch, a training step, a publication."""

    name = "what is waited for"

    def __init__(self, waiting_for: WaitingFor) -> None:
        """``waiting_for``: declares a wait for what the function says."""
        self._waiting_for = waiting_for
        self._in_flight: set[int] = set()
        self._dispatched = False
        self._judged = self._kept = 0
        self._wait = contextlib.ExitStack()
        self._begin(lambda: "the start of Ray, the engines and the trainer")

    def event(self, event: Event) -> None:
        """Take in what begins another wait, or changes what is said of one."""
        match event:
            case GroupDispatched():
                if not self._dispatched:
                    self._begin(self._batch)
                self._dispatched = True
                self._in_flight.add(event.group)
            case GroupJudged():
                self._in_flight.discard(event.group)
                self._judged += 1
                self._kept += event.keep
            case GroupFailed():
                self._in_flight.discard(event.group)
            case BatchTaken():
                self._begin(lambda: f"the training of step {event.step + 1}")
            case StepTrained():
                self._begin(lambda: f"the publication after step {event.step + 1}, or an evaluation or a checkpoint")
            case StepDone():
                self._judged = self._kept = 0
                self._begin(self._batch)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._wait.close()

    def _begin(self, what: Callable[[], str]) -> None:
        self._wait.close()
        self._wait.enter_context(self._waiting_for(what))

    def _batch(self) -> str:
        return (
            f"a batch: {len(self._in_flight)} groups are generated or scored now; of {self._judged} since the last step "
            f"{self._kept} are kept"
        )
