"""Experts' load, and the average of the weights, on real DeepSpeed: in ZeRO-2 and ZeRO-3, with adapters and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import random_model
from rank_processes import run_ranks
from tiny_model import make_tiny_tokenizer

pytestmark = pytest.mark.real


def mixture(folder: Path) -> Path:
    """A mixture of experts whose larger parameters ZeRO-3 partitions."""
    random_model("Qwen3-MoE", settings={"moe_intermediate_size": 256, "initializer_range": 0.05}).save_pretrained(
        folder
    )
    return make_tiny_tokenizer(folder)


def test_experts_are_balanced_on_two_ranks_as_on_one(tmp_path: Path, port: int) -> None:
    """Loss, gradient and weights; with adapters and without, in ZeRO-2 and ZeRO-3."""
    run_ranks("balance_rank.py", 2, port, mixture(tmp_path / "model"), folder=tmp_path)


def test_weights_are_averaged_saved_and_resumed_on_two_ranks(tmp_path: Path, port: int) -> None:
    """The same model and cases; in ZeRO-2 the average is OpenRLHF's own."""
    run_ranks("average_rank.py", 2, port, mixture(tmp_path / "model"), tmp_path, folder=tmp_path)
