"""On real DeepSpeed: a resumed rank goes on with the checkpoint's moments and the configuration's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

pytestmark = pytest.mark.real


def test_a_resumed_optimizer_holds_what_the_configuration_says(tmp_path: Path, port: int) -> None:
    """Learning rate, decays, gradient clipping and the schedule's place in every ZeRO stage, in float32 and bfloat16."""
    script = Path(__file__).parents[1] / "resume_rank.py"
    ended = subprocess.run(
        [sys.executable, str(script), str(port), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
