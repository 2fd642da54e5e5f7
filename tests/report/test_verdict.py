"""The sentence that says what held a run back, on logs of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dapo_openrlhf.report.run_folder import RunFolder
from dapo_openrlhf.report.summary import Summary, closing_words
from dapo_openrlhf.report.verdict import verdict


def rows(engines: float, trainer: float, age: float, *, steps: int = 8) -> list[dict[str, float]]:
    """Steps with these shares; the first two, in which the queue is filled, are otherwise."""
    begin = {"idle_share/engines": 1.0, "idle_share/trainer": 1.0, "policy_age/mean": 0.0}
    then = {"idle_share/engines": engines, "idle_share/trainer": trainer, "policy_age/mean": age}
    return [begin, begin, *[then] * (steps - 2)]


@pytest.mark.parametrize(
    ("engines", "trainer", "age", "max_staleness", "cause"),
    [
        (0.38, 0.03, 1.00, 1, "the trainer limits; a larger K saves at most 3% of a step"),
        (0.00, 0.80, 0.44, 1, "the engines limit; a larger K saves at most 0% of a step"),
        (0.04, 0.05, 1.00, 1, "both work nearly all the time; a larger K saves at most 4% of a step"),
        (0.40, 0.60, 0.00, 0, "they work in turn, as K = 0 demands; async.max_staleness 1"),
        (0.30, 0.35, 1.90, 2, "they wait for each other's stragglers; async.max_staleness 3 or async.at_deadline cut"),
    ],
)
def test_each_kind_of_run_has_its_sentence(
    engines: float, trainer: float, age: float, max_staleness: int, cause: str
) -> None:
    found = verdict(rows(engines, trainer, age), max_staleness=max_staleness)
    assert found is not None
    assert (found.engines_idle, found.trainer_idle) == pytest.approx((engines, trainer))
    begin = f"engines were idle {engines:.0%} of the time and the trainer {trainer:.0%}, at a mean age of {age:.2f}: "
    assert found.sentence.startswith(begin + cause)


@pytest.mark.parametrize("given", [[], rows(0.1, 0.1, 1.0, steps=2)[:1], [{"reward": 1.0}] * 9])
def test_too_little_is_known_for_a_verdict(given: Sequence[dict[str, float]]) -> None:
    assert verdict(given, max_staleness=1) is None


def test_the_closing_words_carry_it(tmp_path: Path) -> None:
    summary = Summary(
        accuracy_before=None, accuracy_after=None, max_staleness=1, max_policy_age=1, steps=8, first_step_seconds=1.0,
        train_seconds=8.0, generated_tokens=8, trained_tokens=8, counters={},
    )  # fmt: skip
    folder = RunFolder.create(tmp_path, "run")
    assert "held back by" not in closing_words(summary, folder)
    assert "held back by       the trainer limits" in closing_words(
        replace(summary, verdict="the trainer limits"), folder
    )
