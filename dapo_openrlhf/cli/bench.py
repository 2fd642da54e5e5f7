"""The command ``dapo-openrlhf bench``: compares this pipeline at several K and stock OpenRLHF on the same work."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.outputs import check_output, write_json
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.heartbeat import Heartbeat, silence_of

if TYPE_CHECKING:
    from dapo_openrlhf.bench.arm import ArmSettings

CACHE = Path(".cache") / "bench"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The size of a comparison."""

    arms: tuple[str, ...]
    steps: int
    """Number of rollout steps of each run, the warm-up included."""
    repeats: int
    max_epochs: int
    """Number of passes over each batch; with two, generating and training take about equally long on this work."""


PRESETS = {
    "cpu-small": Preset(arms=("stock-async", "k1", "k0", "k2", "stock-sync"), steps=10, repeats=2, max_epochs=2),
    "cpu-smoke": Preset(arms=("stock-async", "k1", "k0"), steps=6, repeats=1, max_epochs=2),
}


def bench(options: argparse.Namespace) -> int:
    """Run every arm in turn, as often as the preset says; print the table, write JSON and picture."""
    with stopping.nothing_to_lose():
        from dapo_openrlhf.bench.arm import ArmError
        from dapo_openrlhf.bench.arms import arm_of
        from dapo_openrlhf.bench.comparison import draw, run_in_turn, table, verdicts
        from dapo_openrlhf.bench.workload.chain_folder import chain_workload

    check_output("--json", options.json)
    check_output("--picture", options.picture)
    preset = PRESETS[options.preset]
    settings = _settings(options, preset)
    started = time.monotonic()
    say = Voice(sys.stdout)
    heart = Heartbeat(say, seconds=silence_of(sys.stdout))
    workload = chain_workload(CACHE / "workload")
    try:
        keys = options.arms.split(",") if options.arms else preset.arms
        arms = {key: arm_of(key, workload, settings) for key in keys}
    except ValueError as error:
        raise ConfigError(f"--arms: {error}") from None
    try:
        with heart.beating():
            results = run_in_turn(
                arms,
                repeats=options.repeats or preset.repeats,
                say=lambda line: heart.say(f"{time.monotonic() - started:6.0f} s  {line}"),
            )
    except ArmError as error:
        print(error, file=sys.stderr)
        return 1
    say(f"\n{table(list(results.values()))}\n")
    say("\n".join(verdicts(results)))
    if options.json:
        written = {"machine": _machine(), "preset": options.preset, "arms": [arm.as_dict() for arm in results.values()]}
        write_json(options.json, written)
    draw(list(results.values()), options.picture)
    say(f"picture in {options.picture}; {time.monotonic() - started:.0f} s in all")
    return 1 if say.lost else 0


def _settings(options: argparse.Namespace, preset: Preset) -> ArmSettings:
    """The preset's settings with the changes by the options. Raises :class:`ConfigError`."""
    from dapo_openrlhf.bench.arm import WARM_UP_STEPS, ArmSettings

    settings = ArmSettings(steps=options.steps or preset.steps, max_epochs=options.max_epochs or preset.max_epochs)
    if settings.steps < WARM_UP_STEPS + 2:
        raise ConfigError(f"--steps: {settings.steps} leaves nothing to count; use at least {WARM_UP_STEPS + 2}")
    if options.repeats is not None and options.repeats < 1:
        raise ConfigError(f"--repeats: {options.repeats} is not positive")
    return settings


def _machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()
