"""``dapo-openrlhf bench``: this pipeline against itself and against stock OpenRLHF, on the same work."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config.settings import ConfigError

CACHE = Path(".cache") / "bench"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Size of a comparison."""

    arms: tuple[str, ...]
    steps: int
    """Rollout steps of each run, the warm-up included."""
    repeats: int
    max_epochs: int
    """Passes over each batch: two make generating and training about equally long on this work."""


PRESETS = {
    "cpu-small": Preset(arms=("stock-async", "k1", "k0", "k2", "stock-sync"), steps=10, repeats=2, max_epochs=2),
    "cpu-smoke": Preset(arms=("stock-async", "k1", "k0"), steps=6, repeats=1, max_epochs=2),
}


def bench(options: argparse.Namespace) -> int:
    """Run every arm in turn, as often as the preset says; print the table, write JSON and picture."""
    from dapo_openrlhf.bench.arms import WARM_UP_STEPS, Arm, ArmRun, our_arm, stock_arm
    from dapo_openrlhf.bench.comparison import draw, summarise, table, verdicts
    from dapo_openrlhf.bench.stock.run import StockSettings
    from dapo_openrlhf.bench.workload.chain import prepare_workload

    preset = PRESETS[options.preset]
    keys = tuple(options.arms.split(",")) if options.arms else preset.arms
    settings = StockSettings(steps=options.steps or preset.steps, max_epochs=options.max_epochs or preset.max_epochs)
    if settings.steps < WARM_UP_STEPS + 2:
        raise ConfigError(f"--steps: {settings.steps} leaves nothing to count; use at least {WARM_UP_STEPS + 2}")
    if options.repeats is not None and options.repeats < 1:
        raise ConfigError(f"--repeats: {options.repeats} is not positive")
    started = time.monotonic()
    workload = prepare_workload(CACHE / "workload")

    def arm_of(key: str) -> Arm:
        if key in ("stock-sync", "stock-async", "stock-async-partial"):
            return stock_arm(key.removeprefix("stock-"), workload, settings)  # type: ignore[arg-type]
        if key[:1] == "k" and key[1:].isdigit():
            return our_arm(int(key[1:]), workload, settings)
        raise ConfigError(f"--arms: {key!r} is no arm; use k0, k1, ..., stock-sync, stock-async, stock-async-partial")

    arms = {key: arm_of(key) for key in keys}
    runs: dict[str, list[ArmRun]] = {key: [] for key in keys}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        for repeat in range(options.repeats or preset.repeats):
            for key, arm in arms.items():
                run = arm.run(Path(scratch) / f"{key}-{repeat}")
                runs[key].append(run)
                rate = run.trained_tokens / run.seconds
                print(f"{time.monotonic() - started:6.0f} s  {arm.name}: {rate:,.0f} trained tokens/s", flush=True)
    figures = {key: summarise(arms[key].name, runs[key]) for key in keys}
    print(f"\n{table(list(figures.values()))}\n")
    print("\n".join(verdicts(figures)))
    if options.json:
        result = {"machine": _machine(), "preset": options.preset, "arms": [arm.as_dict() for arm in figures.values()]}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    draw(list(figures.values()), options.picture)
    print(f"picture in {options.picture}; {time.monotonic() - started:.0f} s in all", file=sys.stdout)
    return 0


def _machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()
