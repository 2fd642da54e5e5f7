"""Every part that `make bench-parts` measures does its work; how fast is not asked here."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_parts.py"


@pytest.mark.parametrize("name", ["verifier", "expressions", "packing"])
def test_a_part_and_its_yardstick_do_their_work(name: str) -> None:
    part = runpy.run_path(str(SCRIPT))[name]()
    assert part.ours() > 0 and part.yardstick() > 0
