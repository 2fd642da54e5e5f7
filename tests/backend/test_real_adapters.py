"""Low-rank adapters on real DeepSpeed: in ZeRO-2 and ZeRO-3, on one rank and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_processes import run_ranks
from tiny_model import make_tiny_model

pytestmark = pytest.mark.real


@pytest.mark.parametrize("ranks", [1, 2])
def test_adapters_are_trained_published_saved_and_resumed(tmp_path: Path, port: int, ranks: int) -> None:
    model = make_tiny_model(tmp_path / "model", tied=False)
    run_ranks("adapter_rank.py", ranks, port, model, tmp_path, folder=tmp_path)
