"""Simulations in processes of their own, one for each core at a time."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from types import TracebackType

from dapo_openrlhf.plan.prediction import Prediction
from dapo_openrlhf.plan.scenario import Scenario
from dapo_openrlhf.plan.splits import Split, predict

Asked = tuple[Split, Scenario, int]
"""What :func:`predict` is to simulate, and the number of steps."""


class Processes:
    """Simulates several scenarios at once. Use it in a ``with`` statement, which ends the processes."""

    def __init__(self, count: int | None = None) -> None:
        """``count``: number of processes, by default that of the cores; 1 simulates in this process."""
        count = len(os.sched_getaffinity(0)) if count is None else count
        context = multiprocessing.get_context("fork")  # this command has no threads, and fork takes no second import
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_serve) if count > 1 else None

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def simulate(self, asked: Sequence[Asked]) -> list[Future[Prediction]]:
        """Begin with the predictions, in order."""
        if self._pool is not None:
            return [self._pool.submit(_predict, *one) for one in asked]
        found = []
        for one in asked:
            future: Future[Prediction] = Future()
            future.set_result(_predict(*one))
            found.append(future)
        return found


def _predict(split: Split, scenario: Scenario, steps: int) -> Prediction:
    return predict(split, scenario, steps=steps).prediction


def _serve() -> None:
    """In a new process: signals are its parent's to hear, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # else each collection looks through all that was imported, an eighth of the time
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
