"""Runs a script of trainer ranks, a process for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from patience import HANG_SECONDS


def run_ranks(script: str, ranks: int, port: int, *arguments: Path, folder: Path) -> None:
    """``tests/SCRIPT RANK RANKS PORT ARGUMENTS...`` for every rank at once; fails with what they printed unless all exit 0.

    What they print goes into ``folder``.
    """
    outputs = [folder / f"output-{rank}" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        with output.open("w") as file:
            command = [sys.executable, str(Path(__file__).parent / script), str(rank), str(ranks), str(port)]
            processes.append(subprocess.Popen([*command, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=HANG_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, "".join(output.read_text()[-3000:] for output in outputs)
