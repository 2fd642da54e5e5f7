"""On real DeepSpeed: gradients add up in the data type that was asked for, whatever the ZeRO stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import HANG_SECONDS
from reserved_port import reserved_port
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Relative errors of the gradient of 30 equal micro-batches in bf16 against 30 times that of one."""
    model = make_tiny_model(tmp_path_factory.mktemp("accumulation") / "model", tied=True)
    script = Path(__file__).parents[1] / "accumulation.py"
    with reserved_port() as port:
        command = [sys.executable, str(script), str(port), str(model)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"stage"')]


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("stage", [2, 3])
def test_thirty_micro_batches_are_thirty_times_one(errors: list[dict[str, Any]], stage: int, critic: bool) -> None:
    found = {row["dtype"]: row["error"] for row in errors if (row["stage"], row["critic"]) == (stage, critic)}
    assert found["fp32"] < 1e-6
    assert found["bf16"] > 1e-3, "the same in bf16 must show, or the other says nothing"
