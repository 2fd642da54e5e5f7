"""A user's own configuration as an arm: the same run with another K, or another split of the devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_openrlhf.bench.arm import Arm, Measurement
from dapo_openrlhf.bench.pipeline_arm import run_pipeline, steps_done
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What an arm changes in the configuration."""

    max_staleness: int
    split: tuple[int, int] | None = None
    """Number of engines and of trainer ranks; None keeps the configuration's."""

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"K = {self.max_staleness}" + (f", {self.split[0]}:{self.split[1]}" if self.split else "")


def variants(arm: str, splits: str | None) -> list[Variant]:
    """The variants of an arm ``k0``, ``k1``, ...: one for each of the splits ``1:1,2:2``. Raises ``ValueError``."""
    if not re.fullmatch(r"k\d+", arm):
        raise ValueError(f"{arm!r} is no arm; use k0, k1, ... (stock OpenRLHF is compared on the work of the presets)")
    staleness = int(arm[1:])
    return [Variant(max_staleness=staleness, split=split) for split in (_splits(splits) if splits else [None])]


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

    def run(folder: Path) -> Measurement:
        return run_pipeline(variant.name, _changed(config, variant, length, folder), folder, length.timeout)

    return Arm(name=variant.name, run=run, steps_done=steps_done, devices=checked.devices)


def _changed(config: Config, variant: Variant, length: Length, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json", by_alias=True)

    def change(section: str, values: Mapping[str, object]) -> None:
        settings[section] |= values

    change("run", {"name": "run", "dir": str(folder)})
    change("async", {"max_staleness": variant.max_staleness})
    change("train", {"max_steps": length.steps})
    change("ckpt", {"save_steps": -1})
    change("eval", {"steps": -1} if length.evaluated else {"dataset": None})
    if variant.split:
        engines, ranks = variant.split
        change("vllm", {"num_engines": engines})
        change("actor", {"num_nodes": 1, "num_gpus_per_node": ranks})
    return settings
