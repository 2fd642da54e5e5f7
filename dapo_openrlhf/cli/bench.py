"""The command ``dapo-openrlhf bench``: compares runs at several K, and stock OpenRLHF, on the same work."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_openrlhf import stopping
from dapo_openrlhf.cli.outputs import check_output, check_picture
from dapo_openrlhf.cli.voice import Voice
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.heartbeat import Heartbeat, silence_of

if TYPE_CHECKING:
    from dapo_openrlhf.bench.arm import Arm
    from dapo_openrlhf.bench.config_arm import Variant
    from dapo_openrlhf.bench.record import Record
    from dapo_openrlhf.bench.utilisation import Peak
    from dapo_openrlhf.config.settings import Config

CACHE = Path(".cache") / "bench"
CONFIG_ARMS = ("k0", "k1", "k2")
CONFIG_STEPS = 10
CONFIG_REPEATS = 2


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The size of a comparison."""

    arms: tuple[str, ...]
    steps: int
    """Number of rollout steps of each run, the warm-up included."""
    repeats: int
    max_epochs: int
    """Number of passes over each batch; with two, generating and training take about equally long on this work."""
    turns: bool = False
    """Whether rollouts have turns, answered by an environment that takes 0.1 to 5 s."""


PRESETS = {
    "cpu-small": Preset(arms=("stock-async", "k1", "k0", "k2", "stock-sync"), steps=10, repeats=2, max_epochs=2),
    "cpu-smoke": Preset(arms=("stock-async", "k1", "k0"), steps=6, repeats=1, max_epochs=2),
    "cpu-turns": Preset(arms=("stock-async", "k1", "k0"), steps=12, repeats=2, max_epochs=1, turns=True),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """The arms of a comparison and what they have in common."""

    arms: Mapping[str, Arm]
    settings: Mapping[str, Any]
    repeats: int


def bench(options: argparse.Namespace, config: Config | None) -> int:
    """Run every arm in turn; print the table, write JSON and picture. ``config``: the user's own work, if it is asked for."""
    with stopping.nothing_to_lose():
        from dapo_openrlhf.bench.record import Record, RecordUnreadable
        from dapo_openrlhf.bench.schedule import Budget, run_in_turn

    json_file = options.json or options.resume or Path("bench.json")
    check_output("--json", json_file)
    check_picture("--picture", options.picture)
    _check_numbers(options)
    peak = _peak(options, config)
    work = _preset_work(options) if config is None else _config_work(options, config)
    record = Record(file=json_file, work=work.settings, machine=_machine())
    if options.resume:
        try:
            record.take(options.resume)
        except RecordUnreadable as error:
            raise ConfigError(f"--resume: {error}") from None
    budget = Budget(repeats=work.repeats, seconds=60 * options.minutes if options.minutes else None)
    started = time.monotonic()
    voice = Voice(sys.stdout)
    heart = Heartbeat(voice, seconds=silence_of(sys.stdout))

    def say(line: str) -> None:
        heart.say(f"{time.monotonic() - started:6.0f} s  {line}")

    say(_opening(work, budget.seconds, record))
    if crowd := _crowd(work, config):
        say(crowd)
    try:
        with heart.beating():
            failed = run_in_turn(work.arms, budget, record, say=say)
    finally:  # also when it is stopped
        _tell(record, options.picture, peak, voice)
    voice(f"figures in {json_file}, picture in {options.picture}; {time.monotonic() - started:.0f} s in all")
    return 1 if voice.lost or failed else 0


def _tell(record: Record, picture: Path, peak: Peak | None, say: Callable[[str], None]) -> None:
    from dapo_openrlhf.bench.comparison import DEFINITIONS, draw, table, verdicts

    if not record.count:
        return
    results = record.results()
    definitions = [*DEFINITIONS, *([peak.definition] if peak else [])]
    say("\n".join(["", table(list(results.values()), peak), "", *definitions, "", *verdicts(results)]))
    draw(list(results.values()), picture)


def _opening(work: Work, seconds: float | None, record: Record) -> str:
    runs = f"{len(work.arms)} arms x {work.repeats} runs of {work.settings['steps']} steps"
    if record.count:
        runs += f", {record.count} of them measured before"
    if seconds is not None:
        return f"{runs} at most, in about {seconds / 60:g} min; each arm has one run in any case"
    return f"{runs}; how long that takes is said after the first"


def _crowd(work: Work, config: Config | None) -> str:
    """A warning if processes of engines and trainer have less than a core each; empty if not."""
    cores = len(os.sched_getaffinity(0))
    crowded = [arm.name for arm in work.arms.values() if arm.devices > cores]
    if not crowded or (config is not None and config.device != "cpu"):
        return ""
    return (
        f"warning: {', '.join(crowded)}: more engines and trainer ranks than the {cores} core(s) of this machine; they take turns, "
        "and the figures say little about as many devices"
    )


def _peak(options: argparse.Namespace, config: Config | None) -> Peak | None:
    """What the MFU is computed from, if a peak is given. Raises ``ConfigError`` if it cannot be."""
    from dapo_openrlhf.bench.utilisation import Peak
    from dapo_openrlhf.plan.shape import ModelShape

    if options.peak_tflops is None:
        return None
    if config is None:
        raise ConfigError("--peak-tflops is for a configuration of your own: give --config FILE too")
    model = ModelShape.read(Path(config.actor.model_name_or_path))
    return Peak(parameters=model.parameters, flops=options.peak_tflops * 1e12)


def _check_numbers(options: argparse.Namespace) -> None:
    from dapo_openrlhf.bench.arm import WARM_UP_STEPS

    if options.steps is not None and options.steps < WARM_UP_STEPS + 2:
        raise ConfigError(f"--steps: {options.steps} leaves nothing to count; use at least {WARM_UP_STEPS + 2}")
    for name, value in (
        ("--repeats", options.repeats),
        ("--minutes", options.minutes),
        ("--peak-tflops", options.peak_tflops),
    ):
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: {value} is not positive")


def _repeats(options: argparse.Namespace, otherwise: int) -> int:
    """As many as asked for; as many as fit where a time is given."""
    repeats: int = options.repeats or (1000 if options.minutes else otherwise)
    return repeats


def _preset_work(options: argparse.Namespace) -> Work:
    from dapo_openrlhf.bench.arm import ArmSettings
    from dapo_openrlhf.bench.arms import arm_of
    from dapo_openrlhf.bench.workload.chain_folder import chain_workload, turns_workload

    if unfit := [name for name in ("splits", "eval") if getattr(options, name)]:
        raise ConfigError(f"--{unfit[0]} is for a configuration of your own: give --config FILE too")
    preset = PRESETS[options.preset]
    settings = ArmSettings(steps=options.steps or preset.steps, max_epochs=options.max_epochs or preset.max_epochs)
    workload = turns_workload(CACHE / "turns") if preset.turns else chain_workload(CACHE / "workload")
    try:
        keys = preset.arms if options.arms is None else options.arms.split(",")
        arms = {key: arm_of(key, workload, settings) for key in keys}
    except ValueError as error:
        raise ConfigError(f"--arms: {error}") from None
    environment = workload.agent and workload.agent.name
    return Work(
        arms=arms,
        settings=asdict(settings) | {"environment": environment},
        repeats=_repeats(options, preset.repeats),
    )


def _config_work(options: argparse.Namespace, config: Config) -> Work:
    from dapo_openrlhf.bench.config_arm import Length, config_arm
    from dapo_openrlhf.bench.stock.of_config import check_sayable

    if options.max_epochs:
        raise ConfigError("--max-epochs is for presets: set train.max_epochs in the configuration")
    if options.eval and config.eval.dataset is None:
        raise ConfigError("--eval: the configuration has no held-out problems; set eval.dataset")
    length = Length(steps=options.steps or CONFIG_STEPS, evaluated=options.eval, timeout=options.run_timeout)
    wanted = _variants(options, length.steps)
    stock = {variant.key: variant.stock for variant in wanted if variant.stock is not None}
    check_sayable(config, stock)
    if stock and options.eval:
        raise ConfigError(
            f"--eval: {', '.join(stock)}: OpenRLHF measures another accuracy, the mean reward with settings of its own; leave "
            "stock's arms out, or --eval"
        )
    arms = {
        variant.key + (f" {variant.split[0]}:{variant.split[1]}" if variant.split else ""): config_arm(
            config, variant, length
        )
        for variant in wanted
    }
    settings = config.model_dump(mode="json", by_alias=True, exclude={"run"})
    return Work(
        arms=arms,
        settings=settings | {"steps": length.steps, "evaluated": length.evaluated},
        repeats=_repeats(options, CONFIG_REPEATS),
    )


def _variants(options: argparse.Namespace, steps: int) -> list[Variant]:
    """The arms that are asked for, each with every split. Raises ``ConfigError``."""
    from dapo_openrlhf.bench.config_arm import variants

    found: list[Variant] = []
    for key in CONFIG_ARMS if options.arms is None else options.arms.split(","):
        try:
            found += variants(key, options.splits)
        except ValueError as error:
            raise ConfigError(f"--arms, --splits: {error}") from None
        if (found[-1].max_staleness or 0) >= steps:
            raise ConfigError(
                f"--arms: {key} never gets as stale as that in the {steps} steps of a run; use a smaller K, or more --steps"
            )
    return found


def _machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()
