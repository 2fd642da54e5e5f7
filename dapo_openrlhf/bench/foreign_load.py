"""How much of a machine's processor time other programs take while a run is measured (psutil)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

LOADED = 0.1
"""Share of the processor time from which on foreign programs count as disturbing."""
SAMPLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Processor time at one moment, in seconds summed over cores."""

    possible: float
    """Since the machine's start."""
    busy: float
    mine: dict[int, float]
    """User and system time of each process of this process's tree."""


def processor_time() -> ProcessorTime:
    """The processor time so far, of the machine and of this process's tree."""
    machine = psutil.cpu_times()
    possible = sum(machine) - machine.guest - machine.guest_nice  # these are part of user and nice
    me = psutil.Process()
    mine: dict[int, float] = {}
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        mine[process.pid] = times.user + times.system
    return ProcessorTime(possible, possible - machine.idle - machine.iowait, mine)


@dataclass(slots=True)
class ForeignLoad:
    """Adds up what is neither idle nor used by this process's tree. ``now`` gives the time so far."""

    now: Callable[[], ProcessorTime] = processor_time
    _possible: float = 0.0
    _foreign: float = 0.0

    @property
    def share(self) -> float:
        """Share of the machine's processor time, 0 to 1."""
        return min(1.0, max(0.0, self._foreign) / self._possible) if self._possible else 0.0

    def add(self, before: ProcessorTime, after: ProcessorTime) -> None:
        """Add the time between two moments. Processes that began and ended in between count as foreign."""
        mine = sum(seconds - before.mine.get(process, 0.0) for process, seconds in after.mine.items())
        self._possible += after.possible - before.possible
        self._foreign += after.busy - before.busy - mine

    @contextmanager
    def measured(self, seconds: float = SAMPLE_SECONDS) -> Iterator[None]:
        """Measure during a block, with a look every ``seconds``."""
        over = threading.Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="foreign-load") as threads:
            looks = threads.submit(self._look_until, over, seconds)
            try:
                yield
            finally:
                over.set()
        looks.result()

    def _look_until(self, over: threading.Event, seconds: float) -> None:
        before = self.now()
        while True:
            ended = over.wait(seconds)
            after = self.now()
            self.add(before, after)
            if ended:
                return
            before = after
