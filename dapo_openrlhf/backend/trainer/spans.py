"""Records what a trainer rank did and when (standard library)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dapo_openrlhf.types import Span


class Spans:
    """Collects one worker's spans until they are reported."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._spans: list[Span] = []

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Record how long the block takes, unless it raises."""
        started = time.time()
        yield
        self._spans.append(Span(worker=self._worker, kind=kind, start=started, end=time.time()))

    def take(self) -> tuple[Span, ...]:
        """All spans since the last call."""
        spans, self._spans = tuple(self._spans), []
        return spans
