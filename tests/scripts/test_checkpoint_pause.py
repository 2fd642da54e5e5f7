"""The script that measures a checkpoint writes whole checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dapo_openrlhf.backend.trainer.state_tree import HostCopies, read_tree
from dapo_openrlhf.pipeline.manifest import problems
from scripts import checkpoint_pause


def test_what_is_measured_is_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_pause, "LAYER_PARAMETERS", 8)
    state = checkpoint_pause.state_of(24)
    assert [len(part) for part in state.values()] == [3, 3, 3]
    waited, later = checkpoint_pause.checkpoint(state, HostCopies(), tmp_path / "checkpoint")
    assert waited > 0 and later > 0
    assert problems(tmp_path / "checkpoint") == []
    assert torch.equal(read_tree(tmp_path / "checkpoint" / "state")["exp_avg"]["layer.1"], state["exp_avg"]["layer.1"])
    assert load_file(tmp_path / "checkpoint" / "model.safetensors").keys() == state["model"].keys()
