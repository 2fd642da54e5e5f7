"""Experts' load on real DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import random_model
from rank_processes import run_ranks
from tiny_model import make_tiny_tokenizer

pytestmark = pytest.mark.real


def test_experts_are_balanced_on_two_ranks_as_on_one(tmp_path: Path, port: int) -> None:
    """Loss, gradient and weights; with adapters and without, in ZeRO-2 and ZeRO-3."""
    model = random_model("Qwen3-MoE", settings={"moe_intermediate_size": 256, "initializer_range": 0.05})
    model.save_pretrained(tmp_path / "model")
    make_tiny_tokenizer(tmp_path / "model")
    run_ranks("balance_rank.py", 2, port, tmp_path / "model", folder=tmp_path)
