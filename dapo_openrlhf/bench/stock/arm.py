"""Stock OpenRLHF as an arm.

Its command line runs unmodified in a process tree and a local Ray of its own; ``on_cpu.py`` has what a CPU needs. The
numbers come from the TensorBoard file that it writes itself.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from subprocess import TimeoutExpired

from dapo_openrlhf.bench.arm import WARM_UP_STEPS, Arm, ArmError, ArmSettings, Measurement
from dapo_openrlhf.bench.process_tree import last_lines, run_tree
from dapo_openrlhf.bench.stock.command import ON_CPU, StockMode, stock_arguments, stock_environment
from dapo_openrlhf.bench.stock.steps import StockStep, complete_steps, read_scalars
from dapo_openrlhf.bench.workload.workload import Workload

LAST_LINES = 40
LOG, TENSORBOARD = "stock.log", "tensorboard"
"""What a run writes into its folders."""

STOCK_NAMES: dict[StockMode, str] = {
    "sync": "stock OpenRLHF, synchronous",
    "async": "stock OpenRLHF, asynchronous",
    "async-partial": "stock OpenRLHF, asynchronous, partial rollout",
}


def stock_arm(mode: StockMode, workload: Workload, settings: ArmSettings) -> Arm:
    """The arm of stock OpenRLHF's own trainer."""

    def run(folder: Path) -> Measurement:
        return measure(run_stock(mode, workload, settings, folder), settings)

    return Arm(name=STOCK_NAMES[mode], run=run)


def run_stock(mode: StockMode, workload: Workload, settings: ArmSettings, output: Path) -> list[StockStep]:
    """Run stock OpenRLHF, its log going to ``output``; returns its complete steps, two or more.

    The call blocks. Raises :class:`ArmError` when OpenRLHF fails, takes longer than ``settings.timeout`` or completes
    fewer than two steps; in no case is a process of it left.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stock-") as scratch:
        folder = Path(scratch)
        arguments = [*stock_arguments(mode, workload, settings, folder), *ON_CPU]
        started = time.time()  # TensorBoard's clock
        run_driver(arguments, stock_environment(settings, folder), output / LOG, settings.timeout)
        scalars = read_scalars(folder / TENSORBOARD)
        steps = list(complete_steps(scalars, settings, started, observed_tokens=workload.observed_tokens))
    if len(steps) < 2:
        raise failure(f"({mode}) did {len(steps)} complete steps", output / LOG)
    return steps


def run_driver(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    timeout: float,
    *,
    enough: Callable[[], bool] | None = None,
) -> None:
    """Run OpenRLHF's command line until it ends, or has done ``enough``. Raises :class:`ArmError`."""
    command = [sys.executable, "-m", "dapo_openrlhf.bench.stock.driver", *arguments]
    try:
        status = run_tree(command, environment, log, timeout, enough=enough)
    except TimeoutExpired:
        raise failure(f"took over {timeout:g} s", log) from None
    if status:
        raise failure(f"ended with exit status {status}", log)


def measure(steps: Sequence[StockStep], settings: ArmSettings) -> Measurement:
    """The measurement of the steps after the warm-up."""
    counted = steps[WARM_UP_STEPS:]
    train = [step.make_experience + step.ppo_train for step in counted]
    return Measurement(
        step_seconds=tuple(later.finished - step.finished for step, later in pairwise(steps[WARM_UP_STEPS - 1 :])),
        trained_tokens=sum(step.response_tokens for step in counted),
        generate_seconds=sum(step.generation for step in counted) / len(counted),
        train_seconds=sum(train) / len(counted),
        busier_seconds=sum(max(step.generation, its) for step, its in zip(counted, train, strict=True)) / len(counted),
        publish_seconds=sum(step.broadcast for step in counted) / len(counted),
        mean_age=None,
        max_age=None,
        pass_rate=settings.batch_size * len(counted) / sum(step.generated_groups for step in counted),
    )


def failure(what: str, log: Path) -> ArmError:
    """The error of a run, with the end of its log."""
    return ArmError(f"stock OpenRLHF {what}\n{last_lines(log, LAST_LINES)}")
