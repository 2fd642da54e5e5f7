"""A user's own configuration as an arm: the same run with another K, another split of the devices, or by stock OpenRLHF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.arm import Arm, Measurement
from dapo_openrlhf.bench.arms import STOCK_MODES
from dapo_openrlhf.bench.pipeline_arm import run_pipeline, steps_done
from dapo_openrlhf.bench.stock.arm import STOCK_NAMES
from dapo_openrlhf.bench.stock.command import StockMode
from dapo_openrlhf.bench.stock.of_config import stock_arm_of
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config

PIPELINE = re.compile(r"k\d+")
"""Names of this project's arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What an arm changes in the configuration."""

    key: str
    """The arm as it was asked for: ``k0``, ``k1``, ..., or one of :data:`~dapo_openrlhf.bench.arms.STOCK_MODES`."""
    split: tuple[int, int] | None = None
    """Number of engines and of trainer ranks; None keeps the configuration's."""

    @property
    def max_staleness(self) -> int | None:
        """K; None of stock OpenRLHF, which has none."""
        return int(self.key[1:]) if PIPELINE.fullmatch(self.key) else None

    @property
    def stock(self) -> StockMode | None:
        """The trainer of stock OpenRLHF; None of this project's arms."""
        return STOCK_MODES.get(self.key)

    @property
    def name(self) -> str:
        """As the table has it."""
        name = f"K = {self.max_staleness}" if self.stock is None else STOCK_NAMES[self.stock]
        return name + (f", {self.split[0]}:{self.split[1]}" if self.split else "")


def variants(arm: str, splits: str | None) -> list[Variant]:
    """The variants of an arm: one for each of the splits ``1:1,2:2``. Raises ``ValueError``."""
    if not PIPELINE.fullmatch(arm) and arm not in STOCK_MODES:
        raise ValueError(f"{arm!r} is no arm; use k0, k1, ..., {', '.join(STOCK_MODES)}")
    return [Variant(key=arm, split=split) for split in ([None] if splits is None else _splits(splits))]


def _splits(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", part.strip())
        if match is None:
            raise ValueError(f"{part!r} is no split; use ENGINES:TRAINER_RANKS, such as 2:2")
        found.append((int(match[1]), int(match[2])))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long each run of a configuration is."""

    steps: int
    evaluated: bool
    """Whether held-out accuracy is measured after the last step."""
    timeout: float
    """Seconds the whole run may take."""


def config_arm(config: Config, variant: Variant, length: Length) -> Arm:
    """The arm that trains as the configuration says, but for the variant. Raises ``ConfigError`` if it cannot be run."""
    checked = build_config(_changed(config, variant, length, Path()), source=f"--arms: {variant.name}")
    if variant.stock is not None:
        stock = stock_arm_of(checked, variant.stock, steps=length.steps, timeout=length.timeout)
        return replace(stock, name=variant.name)

    def run(folder: Path) -> Measurement:
        return run_pipeline(variant.name, _changed(config, variant, length, folder), folder, length.timeout)

    return Arm(name=variant.name, run=run, steps_done=steps_done, devices=checked.devices)


def _changed(config: Config, variant: Variant, length: Length, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json", by_alias=True)

    def change(section: str, values: Mapping[str, object]) -> None:
        settings[section] |= values

    change("run", {"name": "run", "dir": str(folder)})
    if variant.max_staleness is not None:
        change("async", {"max_staleness": variant.max_staleness})
    change("train", {"max_steps": length.steps})
    change("ckpt", {"save_steps": -1})
    change("eval", {"steps": -1} if length.evaluated else {"dataset": None})
    if variant.split:
        engines, ranks = variant.split
        change("vllm", {"num_engines": engines})
        change("actor", {"num_nodes": 1, "num_gpus_per_node": ranks})
    return settings
