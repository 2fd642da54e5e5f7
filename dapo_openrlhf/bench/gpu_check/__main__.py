"""The command of ``scripts/gpu_check.sh``, which checks whether an installation works on one GPU, and how fast.

The parts run one after the other. The results are printed as one table; ``--json`` keeps every figure.
"""

from __future__ import annotations

import argparse
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
from dapo_openrlhf.bench.gpu_check.parts import PARTS, compare
from dapo_openrlhf.bench.gpu_check.process import run_part


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when all checks passed, 1 when a check or a part failed, 2 when there is nothing to check."""
    options = _parser().parse_args(arguments)
    if options.part:
        return _measure(options)
    if not Device(kind="cuda", threads=1).count():
        print(
            "gpu_check: there is no NVIDIA GPU here (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES is empty). Run it "
            "on a machine with one, after `make setup DEVICE=cuda`; without a GPU use `make quickstart`",
            file=sys.stderr,
        )
        return 2
    chosen = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    if unknown := set(chosen) - {part.name for part in PARTS}:
        names = ", ".join(part.name for part in PARTS)
        print(f"gpu_check: --parts: there is no {', '.join(sorted(unknown))}; choose among {names}", file=sys.stderr)
        return 2
    started = time.monotonic()
    checks: list[Check] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        for part in PARTS:
            if part.name in chosen:
                checks += run_part(part, Path(scratch), options.budget - (time.monotonic() - started), found)
    checks += compare(found)
    print(f"\n{table(checks)}\n\n{time.monotonic() - started:.0f} s of {options.budget:g} s", flush=True)
    if options.json:
        result = {"seconds": time.monotonic() - started, "checks": [asdict(check) for check in checks], "parts": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if any(check.passed is False for check in checks) else 0


def _measure(options: argparse.Namespace) -> int:
    """Measure one part, in the process of that part."""
    (part,) = [part for part in PARTS if part.name == options.part]
    found = part.run(options.folder)
    options.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh",
        description="Check and measure an installation on one GPU, which engine and trainer share.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="for all parts (default 600)")
    parser.add_argument("--parts", metavar="A,B,...", help=f"only these of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
