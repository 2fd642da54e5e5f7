"""Gauges of Ray, which its node agents serve to Prometheus; this process opens no port for them."""

from __future__ import annotations

from ray.util.metrics import Gauge


def ray_gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    """A gauge that Ray serves as ``ray_NAME``. A cluster must be connected by the time it is set."""
    return Gauge(name, description, tags)
