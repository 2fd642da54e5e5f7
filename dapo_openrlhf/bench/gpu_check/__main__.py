"""The command of ``scripts/gpu_check.sh``, which checks whether an installation works on its GPUs, and how fast.

The parts run one after the other. The results are printed as one table; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.bench.gpu_check.check import Check, table
from dapo_openrlhf.bench.gpu_check.parts import parts
from dapo_openrlhf.bench.gpu_check.process import run_part

BUDGET = 600.0
MOST_GPUS = 2
NAMES = [part.name for part in parts(gpus=1, stock=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all checks passed, 1 when a check or a part failed, 2 when there is nothing to check."""
    options = _parser().parse_args(arguments)
    if options.part:
        return _measure(options)
    visible = Device(kind="cuda", threads=1).count()
    if (refusal := _refusal(options, visible)) is not None:
        print(f"gpu_check: {refusal}", file=sys.stderr)
        return 2
    gpus = options.gpus or min(visible, MOST_GPUS)
    chosen = options.parts.split(",") if options.parts else NAMES
    started = time.monotonic()
    checks: list[Check] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        for part in parts(gpus=gpus, stock=options.stock):
            if part.name in chosen:
                left = part.limit if part.name == "stock" else options.budget - (time.monotonic() - started)
                checks += run_part(part, Path(scratch), left, found, gpus=gpus)
    seconds = time.monotonic() - started
    print(f"\n{table(checks)}\n\n{seconds:.0f} s of {options.budget:g} s", flush=True)
    if options.json:
        result = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "gpus": gpus,
            "checks": [asdict(check) for check in checks],
            "parts": found,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if any(check.passed is False for check in checks) else 0


def _refusal(options: argparse.Namespace, visible: int) -> str | None:
    """Why nothing can be checked as asked; None if it can."""
    if not visible:
        return (
            "there is no NVIDIA GPU here (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES is empty). Run it on a machine with "
            "one, after `make setup DEVICE=cuda`; without a GPU use `make quickstart`"
        )
    if options.gpus is not None and options.gpus > visible:
        return (
            f"--gpus: {options.gpus} are asked for, {visible} can be seen (CUDA_VISIBLE_DEVICES); use --gpus {visible}"
        )
    if unknown := set(options.parts.split(",") if options.parts else []) - {*NAMES}:
        return f"--parts: there is no {', '.join(sorted(unknown))}; choose among {', '.join(NAMES)}"
    return None


def _measure(options: argparse.Namespace) -> int:
    """Measure one part, in the process of that part."""
    (part,) = [part for part in parts(gpus=options.gpus, stock=True) if part.name == options.part]
    found = part.run(options.folder)
    options.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh",
        description="Check and measure an installation: on one GPU, which engine and trainer share, or on two.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--gpus",
        type=int,
        choices=range(1, MOST_GPUS + 1),
        help="1: shared, weights through GPU memory; 2: one each, weights by NCCL (default: 2 where there are two)",
    )
    parser.add_argument(
        "--stock", action="store_true", help="run stock OpenRLHF on the same work too, up to ten minutes"
    )
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="without stock (default 600)")
    parser.add_argument("--parts", metavar="A,B,...", help=f"only these of {','.join(NAMES)}")
    parser.add_argument("--part", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
