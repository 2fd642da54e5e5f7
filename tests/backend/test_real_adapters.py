"""Low-rank adapters on real DeepSpeed: in ZeRO-2 and ZeRO-3, on one rank and on two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


@pytest.mark.parametrize("ranks", [1, 2])
def test_adapters_are_trained_published_saved_and_resumed(tmp_path: Path, port: int, ranks: int) -> None:
    model = make_tiny_model(tmp_path / "model", tied=False)
    script = Path(__file__).parents[1] / "adapter_rank.py"
    outputs = [tmp_path / f"output-{rank}" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        with output.open("w") as file:
            command = [sys.executable, str(script), str(rank), str(ranks), str(port), str(model), str(tmp_path)]
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=HANG_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, "".join(output.read_text()[-3000:] for output in outputs)
