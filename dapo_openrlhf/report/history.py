"""What was measured before a run was resumed (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dapo_openrlhf.pipeline.event_file import is_log
from dapo_openrlhf.pipeline.event_log import read_what_is_left
from dapo_openrlhf.pipeline.events import Evaluated


def earlier_evaluations(events: Path, first_step: int) -> dict[int, Evaluated]:
    """The evaluations after at most ``first_step`` steps by the steps done, the later of two after the same."""
    if not first_step or not is_log(events):
        return {}
    found = (logged.event for logged in read_what_is_left(events, lambda number: None))
    measured = {one.step: one for one in found if isinstance(one, Evaluated) and one.step <= first_step}
    return dict(sorted(measured.items()))


def accuracy_at_start(before: Mapping[int, Evaluated], now: float | None, *, problems: int) -> float | None:
    """The accuracy from which a run is counted: that of its first start, if it was measured on as many problems.

    ``now``: what was measured when this process began.
    """
    first = before.get(0)
    return first.accuracy if first is not None and first.problems == problems else now
