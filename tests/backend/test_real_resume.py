"""On real DeepSpeed: a resumed rank goes on with the checkpoint's moments and the configuration's settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_processes import run_ranks

pytestmark = pytest.mark.real


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_optimizer_holds_what_was_saved_and_what_the_configuration_says(
    tmp_path: Path, port: int, ranks: int
) -> None:
    """Moments and weights to the bit, learning rate, decays, clipping and the schedule's place: in every ZeRO stage."""
    run_ranks("resume_rank.py", ranks, port, tmp_path, folder=tmp_path)
