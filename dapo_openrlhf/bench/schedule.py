"""Runs arms in turn until each has had its repeats, or until a time budget is used up."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.bench.arm import Arm, ArmError, Measurement
from dapo_openrlhf.bench.foreign_load import LOADED, ForeignLoad
from dapo_openrlhf.bench.record import Record
from dapo_openrlhf.heartbeat import waiting_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much is measured."""

    repeats: int
    """Most runs of each arm."""
    seconds: float | None = None
    """No round of all arms is begun that would probably end later than this after the start; the first always is."""


def run_in_turn(
    arms: Mapping[str, Arm],
    budget: Budget,
    record: Record,
    *,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Run the arms, interleaved, so that changes on the machine affect all of them alike; each run is kept at once.

    Arms that have runs in the record already are not run as often. An arm that fails is said, and not run again. Returns
    the errors by arm.
    """
    failed: dict[str, str] = {}
    started = clock()
    with (
        stopping.telling(lambda: _kept(record)),
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
    ):
        for repeat in range(budget.repeats):
            due = [key for key in arms if key not in failed and len(record.runs.get(key, ())) <= repeat]
            round_seconds = _expected(record, due)
            if budget.seconds is not None and repeat and clock() - started + round_seconds > budget.seconds:
                say(f"another round would take {round_seconds:.0f} s more than there is time for")
                break
            for key in due:
                try:
                    run = _run(
                        arms[key], Path(scratch) / f"{key}-{repeat}", f"run {repeat + 1} of {budget.repeats}", clock
                    )
                except ArmError as error:
                    failed[key] = str(error)
                    say(f"{arms[key].name} failed, and is not run again: {error}")
                    continue
                record.add(key, arms[key], run)
                say(f"{arms[key].name}: {run.trained_tokens_per_second:,.0f} trained tokens/s{_disturbed(run)}")
                if left := _left(arms, budget, record, failed):
                    say(f"about {left / 60:.0f} min to go" if left > 90 else f"about {left:.0f} s to go")
    return failed


def _run(arm: Arm, folder: Path, which: str, clock: Callable[[], float]) -> Measurement:
    def doing() -> str:
        steps = arm.steps_done(folder)
        return f"{arm.name}, {which}" + ("" if steps is None else f", {steps} steps done")

    load, started = ForeignLoad(), clock()
    with waiting_for(doing), load.measured():
        run = arm.run(folder)
    return replace(run, foreign_load=load.share, wall_seconds=clock() - started)


def _disturbed(run: Measurement) -> str:
    if run.foreign_load < LOADED:
        return ""
    return f"; other programs took {run.foreign_load:.0%} of the machine's processor time meanwhile"


def _expected(record: Record, keys: list[str]) -> float:
    """Seconds that one more run of each of these arms will probably take; 0 where nothing is known yet."""
    seconds = [run.wall_seconds for runs in record.runs.values() for run in runs]
    if not seconds:
        return 0.0
    mean = sum(seconds) / len(seconds)
    return sum(record.runs[key][-1].wall_seconds if record.runs.get(key) else mean for key in keys)


def _left(arms: Mapping[str, Arm], budget: Budget, record: Record, failed: Mapping[str, str]) -> float:
    """Seconds until the end, as far as the runs so far tell."""
    if budget.seconds is not None:
        return 0.0
    missing = [
        key
        for key in arms
        if key not in failed
        for _ in range(budget.repeats - len(record.runs.get(key, ())))
    ]  # fmt: skip
    return _expected(record, missing)


def _kept(record: Record) -> str:
    if not record.count:
        return "nothing was measured yet; the same command begins anew"
    runs = "run that was measured is" if record.count == 1 else f"{record.count} runs that were measured are"
    return f"the {runs} in {record.file}; the same command with --resume {record.file} goes on"
