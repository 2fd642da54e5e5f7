"""The command ``dapo-openrlhf job``, which a submission runs on the cluster: check, train, and train again if it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.backend.run.jobs.order import ORDER, Order
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.resume_point import newest_point
from dapo_openrlhf.report.status import read_status

REFUSED = 2
"""Exit status of a configuration that cannot run, which no repetition mends."""
STOPPED = 128 + signal.SIGTERM
"""Exit status of a job that was asked to stop while no command of it ran."""
PAUSE_SECONDS = 5.0
"""Seconds before a training is begun again, in which the cluster frees what the last one held."""

Run = Callable[[Sequence[str]], int]
"""Runs this project's command with some arguments; returns its exit status."""


def job() -> int:
    """Do what the environment's order says; returns the exit status of the last training."""
    text = os.environ.get(ORDER)
    if text is None:
        raise ConfigError(f"job: {ORDER} is not set; this command is for jobs that `dapo-openrlhf submit` sends")
    order = Order.from_json(text)
    asked: list[signal.Signals] = []
    with tempfile.TemporaryDirectory() as folder, stopping.listening(asked.append):
        file = Path(folder, f"{order.id}.yaml")
        file.write_text(order.settings, encoding="utf-8")
        return perform(order, file, run=command, stopped=lambda: any(one in stopping.ENDING for one in asked))


def command(arguments: Sequence[str]) -> int:
    """Run this project's command in a process of its own. Ray signals all processes of a job, so none is passed on."""
    sys.stdout.flush()
    status = subprocess.run([sys.executable, "-u", "-m", "dapo_openrlhf", *arguments], check=False).returncode
    return status if status >= 0 else 128 - status


def perform(order: Order, file: Path, *, run: Run, stopped: Callable[[], bool], pause: float = PAUSE_SECONDS) -> int:
    """Check, and train until it succeeds, is refused or stopped, or the retries are used up."""
    config = load_config(file)
    match order.resume:
        case None:
            first = ["--config", str(file)]
        case "auto":
            first = ["--config", str(file), "--resume", "auto"]
        case folder:
            first = ["--resume", folder, *order.changes]
    if status := run(["check", *first]):
        return status
    for attempt in range(order.retries + 1):
        begin = first if attempt == 0 else _again(first, config, order)
        if stopped():
            return STOPPED
        status = run(["train", *begin])
        if status in (0, REFUSED) or stopped() or attempt == order.retries:
            break
        print(
            f"the training ended with status {status}; it is begun again in {pause:g} s ({attempt + 1} of "
            f"{order.retries} retries)",
            flush=True,
        )
        time.sleep(pause)
    return status


def _again(first: list[str], config: Config, order: Order) -> list[str]:
    """How to go on: from the newest good checkpoint of this job's run, or anew in its folder where there is none."""
    if order.resume not in (None, "auto"):
        return first
    run = run_of(order.id, Path(config.run.dir))
    if run is None:
        return first
    try:
        newest_point(run, lambda text: print(text, flush=True))
    except ConfigError:
        return [*first[:2], "--anew", str(run)]
    return ["--resume", str(run)]


def run_of(job_id: str, parent: Path) -> Path | None:
    """The newest run in a folder that a job has begun; None if it has begun none."""
    runs = {folder: read_status(folder) for folder in parent.glob("*") if folder.is_dir() and not folder.is_symlink()}
    ours = {folder: float(told["updated"]) for folder, told in runs.items() if told.get("job") == job_id}
    return max(ours, key=lambda folder: ours[folder], default=None)
