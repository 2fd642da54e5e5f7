"""On real DeepSpeed: whole parameters of a model on two ranks, for every ZeRO stage."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_whole_parameters_of_two_ranks(stage: int, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", tied=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).parent / "zero_ranks.py"
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(stage), str(port), str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=HANG_SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs[0][-2000:]
