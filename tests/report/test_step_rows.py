"""Rows of steps kept as columns: what is put in comes out, and it takes little memory."""

from __future__ import annotations

import math
import random
import tracemalloc

from dapo_openrlhf.report.step_rows import StepRows


def test_rows_come_out_as_they_were_put_in_whatever_numbers_they_have() -> None:
    dice = random.Random(0)
    rows = StepRows({3: {"reward": 0.5}})
    kept = {3: {"reward": 0.5}}
    for _ in range(2000):
        step = dice.randrange(40)
        if dice.random() < 0.1:
            rows.forget_from(step)
            kept = {other: row for other, row in kept.items() if other < step}
        else:
            kept[step] = {name: dice.random() for name in dice.sample("abcdef", k=dice.randint(1, 6))}
            rows.put(step, kept[step])
        shown = dict(enumerate(rows.all()))
        assert {step: row for step, row in shown.items() if row} == kept
        assert [*rows.there()] == [kept[step] for step in sorted(kept)]


def test_the_rows_of_a_resumed_run_begin_at_its_first_step() -> None:
    rows = StepRows()
    rows.put(2, {"reward": 0.5})
    assert [*rows.all()] == [{}, {}, {"reward": 0.5}]
    assert [*rows.there()] == [{"reward": 0.5}]
    assert [*StepRows().all()] == []


def test_what_is_no_number_is_left_out() -> None:
    rows = StepRows()
    rows.put(0, {"reward": math.nan, "loss": math.inf, "length": 0.0})
    assert [*rows.all()] == [{"loss": math.inf, "length": 0.0}]


def test_a_thousand_rows_take_half_a_megabyte() -> None:
    names = [f"number/{index}" for index in range(60)]
    rows = StepRows()
    tracemalloc.start()
    for step in range(1000):
        rows.put(step, {name: step + 0.5 for name in names})
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 0.6e6
