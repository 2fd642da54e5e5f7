"""Memory of every process of a long run of the real stack, step by step: `make soak`.

    .venv/bin/python scripts/soak.py [--steps N] [--warm-up N] [--set NAME VALUE ...]

It trains the quickstart's model on very short responses, and prints a table with each process's growth per 1,000 steps
after the warm-up: the slope of a straight line through its samples. The memory is a process's unique set size: pages
that it shares would count for more or less as other processes come and go.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dapo_openrlhf.pipeline.event_file import size_of

SAMPLE_SECONDS = 5.0
MIB = 1 << 20
SHORTEST = {
    "rollout.batch_size": "4",
    "rollout.n_samples_per_prompt": "2",
    "rollout.max_new_tokens": "4",
    "train.batch_size": "8",
    "data.max_len": "64",
    "reward.overlong_buffer_len": "null",
    "reward.overlong_filtering_enable": "false",
    "algo.dynamic_filtering_enable": "false",
    "eval.dataset": "null",
}
"""Settings that make a step as short as can be."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The memory of a process at some step."""

    step: int
    bytes: int


def slope(samples: Sequence[Sample]) -> float:
    """Growth in bytes per step: the slope of the straight line with the least squared distance. NaN for one step."""
    if len({sample.step for sample in samples}) < 2:
        return float("nan")
    return statistics.linear_regression([s.step for s in samples], [s.bytes for s in samples]).slope


def table(memory: Mapping[str, Sequence[Sample]], *, warm_up: int) -> list[str]:
    """A row for each process with samples after the warm-up."""
    rows = ["| process | samples | from (MB) | to (MB) | MB per 1,000 steps |", "|---|---|---|---|---|"]
    for name, samples in sorted(memory.items()):
        warm = [sample for sample in samples if sample.step >= warm_up]
        if len(warm) > 1:
            begin, end = (sample.bytes / MIB for sample in (warm[0], warm[-1]))
            rows.append(f"| {name} | {len(warm)} | {begin:.1f} | {end:.1f} | {slope(warm) * 1000 / MIB:+.2f} |")
    return rows


def name_of(process: psutil.Process) -> str:
    """What a process is, as Ray or its command line says, with its id."""
    words = process.cmdline()
    name = words[0].split("/")[-1].split(".")[0].strip() if words else process.name()
    if name.startswith("python"):
        modules = [word for word in words[1:] if word.startswith("dapo_") or word.endswith(".py")]
        name = modules[0].split("/")[-1] if modules else name
    return f"{name} {process.pid}"


def measure(root: psutil.Process) -> dict[str, int]:
    """Bytes of a process and of those below it."""
    found = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            found[name_of(process)] = process.memory_full_info().uss
        except psutil.Error:  # it has just ended
            continue
    return found


def soak(command: Sequence[str], metrics: Path) -> dict[str, list[Sample]]:
    """Run a command to its end, or until Ctrl-C, and sample it. Raises ``CalledProcessError`` if it fails."""
    memory: dict[str, list[Sample]] = defaultdict(list)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        root = psutil.Process(running.pid)
        try:
            while running.poll() is None:
                time.sleep(SAMPLE_SECONDS)
                step = sum(1 for _ in metrics.open("rb")) if metrics.exists() else 0
                for name, size in measure(root).items() if running.poll() is None else ():
                    memory[name].append(Sample(step, size))
        except KeyboardInterrupt:
            running.terminate()  # SIGINT is ignored by what was started in the background
            running.wait()
            return memory
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return memory


def main() -> None:
    """Soak and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--warm-up", type=int, default=500, help="steps before the first sample that counts")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME VALUE", help="settings, names without dashes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "soak"
        settings = SHORTEST | {"run.dir": folder, "run.name": "soak", "train.max_steps": str(options.steps)}
        settings |= dict(zip(options.set[::2], options.set[1::2], strict=True))
        command = [sys.executable, "-m", "dapo_openrlhf", "train", "--config", "configs/quickstart_cpu.yaml"]
        command += [word for name, value in settings.items() for word in (f"--{name}", value)]
        begun = time.monotonic()
        memory = soak(command, run / "metrics.jsonl")
        steps = max(sample.step for samples in memory.values() for sample in samples)
        print(f"{steps} steps in {time.monotonic() - begun:.0f} s, the first {options.warm_up} not counted")
        print("\n".join(table(memory, warm_up=options.warm_up)))
        print(f"event log: {size_of(run / 'events.jsonl') / max(1, steps):.0f} bytes a step")


if __name__ == "__main__":
    main()
