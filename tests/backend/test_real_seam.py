"""On real DeepSpeed: the same rank, with models under DeepSpeed and with plain ones, does the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import HANG_SECONDS
from safetensors.torch import load_file, save_file
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


@pytest.mark.parametrize("states", ["device", "offload"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_under_deepspeed_is_a_step_of_plain_torch(stage: int, states: str, tmp_path: Path, port: int) -> None:
    """Losses, gradient norms and updated weights of policy and critic; tolerances stand in the script."""
    model, critic = make_tiny_model(tmp_path / "model", tied=True), tmp_path / "critic"
    shutil.copytree(model, critic)
    weights = load_file(critic / "model.safetensors")
    head = torch.randn(1, weights["model.norm.weight"].shape[0], generator=torch.Generator().manual_seed(0)) / 10
    save_file(weights | {"score.weight": head}, critic / "model.safetensors", {"format": "pt"})
    script = Path(__file__).parents[1] / "seam_rank.py"
    done = subprocess.run(
        [sys.executable, str(script), str(port), str(model), str(critic), str(stage), states],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
