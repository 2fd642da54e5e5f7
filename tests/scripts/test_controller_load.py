"""The controller's work for a group does not grow with the number of prompts in a step."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import FrameType

import pytest

from dapo_openrlhf.pipeline.dynamic_sampling import KEPT, OverSampling
from dapo_openrlhf.types import FilterDecision

controller_groups = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "controller_load.py"))[
    "controller_groups"
]


def calls_of_a_group(prompts: int, max_staleness: int) -> float:
    """Number of function calls, builtin ones included, for each group of a run."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        groups = controller_groups(prompts, max_staleness, 800)
    finally:
        sys.setprofile(None)
    return calls / groups


@pytest.mark.parametrize("max_staleness", [1, 4])
def test_a_step_of_eight_times_the_prompts_takes_about_eight_times_the_calls(max_staleness: int) -> None:
    small, large = calls_of_a_group(16, max_staleness), calls_of_a_group(128, max_staleness)
    assert large < 1.3 * small


def test_the_pass_rate_is_that_of_the_last_groups() -> None:
    """Of the last 8 groups, whatever came before: 0.85 over the share that was kept."""
    over_sampling = OverSampling(factor=None, window=8)
    for number in range(100):
        over_sampling.observe(FilterDecision(number % 2 == 0, KEPT))
    assert over_sampling.factor == pytest.approx(0.85 * 2)
    for _ in range(8):
        over_sampling.observe(FilterDecision(True, KEPT))
    assert over_sampling.factor == 1.0
