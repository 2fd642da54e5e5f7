"""The arms of a comparison by their names on the command line."""

from __future__ import annotations

from dapo_openrlhf.bench.arm import Arm, ArmSettings
from dapo_openrlhf.bench.pipeline_arm import pipeline_arm
from dapo_openrlhf.bench.stock.arm import stock_arm
from dapo_openrlhf.bench.stock.command import StockMode
from dapo_openrlhf.bench.workload.workload import Workload

STOCK_MODES: dict[str, StockMode] = {
    "stock-sync": "sync",
    "stock-async": "async",
    "stock-async-partial": "async-partial",
}


def arm_of(key: str, workload: Workload, settings: ArmSettings) -> Arm:
    """The arm called ``key``: ``k0``, ``k1``, ... or one of :data:`STOCK_MODES`. Raises ``ValueError``."""
    if key in STOCK_MODES:
        return stock_arm(STOCK_MODES[key], workload, settings)
    if key[:1] == "k" and key[1:].isdigit():
        return pipeline_arm(int(key[1:]), workload, settings)
    raise ValueError(f"{key!r} is no arm; use k0, k1, ..., {', '.join(STOCK_MODES)}")
