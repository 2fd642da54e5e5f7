"""Gives a run's numbers to gauges, as Prometheus knows them (standard library only)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Protocol

from dapo_openrlhf.pipeline.events import Evaluated, Event
from dapo_openrlhf.pipeline.metrics import METRICS, Row
from dapo_openrlhf.report.recorder import Sink

STEPS, OTHER = "dapo_steps", "dapo_other"
RUN, NAME = "run", "name"
SERVED_PREFIX = "ray_"
"""What Ray puts before the names of gauges that it serves."""


class Gauge(Protocol):
    """A number that Prometheus can ask for; it keeps its last value."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Take the newest value for these tags."""


OpenGauge = Callable[[str, str, tuple[str, ...]], Gauge]
"""Makes a gauge of a name, a description, and the keys of its tags."""


def gauge_name(metric: str) -> str:
    """The gauge of a metric: ``policy_age/mean`` is ``dapo_policy_age_mean``."""
    return "dapo_" + re.sub(r"[^a-z0-9]+", "_", metric)


GAUGES: Mapping[str, str] = {
    STEPS: "rollout steps done",
    **{gauge_name(name): f"{metric.meaning} ({metric.unit})" for name, metric in METRICS.items()},
    OTHER: "every further number, by its name: what a reward returns as extra_logs, estimates of evaluations, ages",
}
"""Every gauge with its description. All have the tag ``run``, and :data:`OTHER` also ``name``."""


def tag(text: str) -> str:
    """A value of a tag as Ray takes it, in ASCII: ``ü`` is written ``\\xfc``."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


class Gauges(Sink):
    """Sets a gauge per metric at every step; numbers that are no metric share one, each under its name."""

    name = "the gauges for Prometheus"

    def __init__(self, run: str, open_gauge: OpenGauge) -> None:
        """``run``: the value of the tag by which runs are told apart. Gauges are made when they are first set."""
        self._run = tag(run)
        self._open = open_gauge
        self._gauges: dict[str, Gauge] = {}

    def event(self, event: Event) -> None:
        """Set an evaluation's estimates."""
        if isinstance(event, Evaluated):
            self._set("eval/accuracy", event.accuracy)
            for name, value in event.estimates.items():
                self._set(f"eval/{name}", value)

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Set every number of the row."""
        self._gauge(STEPS).set(float(step + 1), {RUN: self._run})
        for name, value in row.items():
            self._set(name, value)

    def _set(self, metric: str, value: float) -> None:
        if not math.isfinite(value):
            return
        if metric in METRICS:
            self._gauge(gauge_name(metric)).set(float(value), {RUN: self._run})
        else:
            self._gauge(OTHER).set(float(value), {RUN: self._run, NAME: tag(metric)})

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            tags = (RUN, NAME) if name == OTHER else (RUN,)
            self._gauges[name] = self._open(name, GAUGES[name], tags)
        return self._gauges[name]
