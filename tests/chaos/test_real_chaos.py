"""The short part of ``make chaos``, on Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.chaos.__main__ import run
from scripts.chaos.rows import SHORT

pytestmark = pytest.mark.real


def test_the_short_part_passes(tmp_path: Path) -> None:
    """An engine dies while weights are published to it; a run is stopped and its newest checkpoint damaged."""
    assert all(result.passed for result in run(SHORT, tmp_path / "chaos")), (
        tmp_path / "chaos" / "chaos.md"
    ).read_text()
    died, damaged = json.loads((tmp_path / "chaos" / "chaos.json").read_text())
    assert "engine lost" in died["happened"] and "engine replaced" in died["happened"]
    assert (died["exit_codes"], died["steps_lost"]) == ([0], 0)
    assert (damaged["exit_codes"], damaged["problems"]) == ([143, 0], [])
    assert damaged["steps_lost"] >= 1, "the newest checkpoint was not the one resumed from"
