"""On real DeepSpeed: a resumed rank goes on with the checkpoint's moments and the configuration's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

pytestmark = pytest.mark.real


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_optimizer_holds_what_was_saved_and_what_the_configuration_says(
    tmp_path: Path, port: int, ranks: int
) -> None:
    """Moments and weights to the bit, learning rate, decays, clipping and the schedule's place: in every ZeRO stage."""
    script = Path(__file__).parents[1] / "resume_rank.py"
    outputs = [tmp_path / f"output-{rank}" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        with output.open("w") as file:
            command = [sys.executable, str(script), str(rank), str(ranks), str(port), str(tmp_path)]
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=HANG_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, "".join(output.read_text()[-3000:] for output in outputs)
