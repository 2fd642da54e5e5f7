"""Runs a part in a process of its own, with a time limit, so that one that hangs or fails affects no other part."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from dapo_openrlhf.bench.gpu_check.check import Check, Part
from dapo_openrlhf.bench.process_tree import last_lines, run_tree

LAST_LINES = 25


def run_part(part: Part, folder: Path, left: float, found: dict[str, Any], *, gpus: int) -> list[Check]:
    """Run a part in a process of its own; its figures go into ``found``."""
    limit = min(part.limit, left)
    if limit <= 0 and part.extra:
        return [Check(name=part.name, measured="not run: no time was left")]
    print(f"{part.name} (at most {max(0.0, limit):.0f} s) ... ", end="", flush=True)
    started = time.monotonic()
    log = folder / f"{part.name}.log"
    output = folder / f"{part.name}.json"
    failure = (
        "no time was left" if limit <= 0 else _failure([part.name, "--gpus", str(gpus)], folder, output, log, limit)
    )
    print(f"{failure or 'done'} after {time.monotonic() - started:.0f} s", flush=True)
    if failure:
        lines = last_lines(log, LAST_LINES).splitlines()
        print("\n".join(f"    {line}" for line in lines), flush=True)
        return [Check(name=part.name, measured=failure, expected="to finish", passed=False)]
    found[part.name] = json.loads(output.read_text(encoding="utf-8"))
    return part.assess(found)


def _failure(part: Sequence[str], folder: Path, output: Path, log: Path, limit: float) -> str:
    """Run a part's process; returns why it failed, or an empty text. None of its descendants is left."""
    command = [sys.executable, "-m", "dapo_openrlhf.bench.gpu_check", "--part", *part, "--folder", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # a Ray of its own
    try:
        status = run_tree([*command, "--json", str(output)], environment, log, limit)
    except TimeoutExpired:
        return f"not done within {limit:.0f} s"
    return f"failed with exit status {status}" if status else ""
