"""Runs that have done enough before their last step: at a target, on a plateau, after some hours."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fakes import FakeEngine, FakeGroup, FakeScorer, World, build

from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.ending import Ending, Limits
from dapo_openrlhf.pipeline.events import Evaluated, SnapshotTaken
from dapo_openrlhf.plan.virtual_time import run_virtual


def reasons(limits: Limits, accuracies: Sequence[float], name: str = "avg@4") -> list[str]:
    ending, found = Ending(limits), []
    for step, accuracy in enumerate(accuracies):
        ending.measured(step, {name: accuracy, "pass@4": 1.0})
        found.append(ending.reason(seconds=10.0 * step))
    return found


def test_a_target_is_reached_by_the_accuracy_or_by_the_metric_that_was_named() -> None:
    first, second = reasons(Limits(target=0.9), [0.89, 0.9])
    assert (first, second) == ("", "avg@4 was 90.0% after 1 steps, and 90.0% is enough (eval.target)")
    assert reasons(Limits(target=0.9, metric="pass@4"), [0.1])[0].startswith("pass@4 was 100.0% after 0 steps")
    assert reasons(Limits(target=0.9, metric="none"), [0.95])[0].startswith("avg@4")
    assert reasons(Limits(target=0.1, metric="maj@8"), [0.95]) == [""], "not measured, so not reached"


def test_a_plateau_is_as_many_evaluations_in_a_row_without_a_better_one() -> None:
    found = reasons(Limits(patience=2), [0.5, 0.5, 0.6, 0.4, 0.6, 0.7])
    assert found[:4] == [""] * 4
    assert found[4] == (
        "avg@4 was 60.0% after 4 steps, the evaluation number 2 in a row that was no better than 60.0% (eval.patience 2)"
    )


def test_evaluations_of_weights_that_were_lost_do_not_count() -> None:
    ending = Ending(Limits(patience=2))
    for step, accuracy in ((0, 0.1), (5, 0.5), (10, 0.9), (5, 0.5), (10, 0.6), (15, 0.4)):
        ending.measured(step, {"avg@1": accuracy})
        assert ending.reason(seconds=1.0) == "", "a second trainer went on from before step 5"
    ending.measured(20, {"avg@1": 0.6})
    assert "after 20 steps, the evaluation number 2 in a row" in ending.reason(seconds=1.0)


def test_hours_count_from_the_command() -> None:
    assert reasons(Limits(hours=15 / 3600), [0.1, 0.1, 0.1]) == [
        "",
        "",
        "0.01 hours have passed (train.max_hours 0.00416667)",
    ]
    assert reasons(Limits(), [0.1, 1.0, 1.0, 1.0]) == [""] * 4


def run(limits: Limits, *, right_from: int = 99, steps: int = 12, save_steps: int = -1) -> tuple[Outcome, World]:
    """A run in which evaluations are all right from a version on; a step takes a second and more."""

    async def main() -> tuple[Outcome, World]:
        def pattern(group: FakeGroup) -> list[bool]:
            return [True, False] if group.for_training else [group.oldest_version >= right_from, True]

        world = build(
            steps=steps, problem_count=2, eval_steps=2, save_steps=save_steps, limits=limits,
            engines=[FakeEngine()], scorer=FakeScorer(pattern=pattern),
        )  # fmt: skip
        return await world.run(), world

    return run_virtual(main())


@pytest.mark.parametrize("save_steps", [-1, 5])
def test_a_run_ends_at_its_target_with_a_checkpoint_a_model_and_a_last_evaluation(save_steps: int) -> None:
    outcome, world = run(Limits(target=0.9), right_from=4, save_steps=save_steps)
    assert "eval.target" in outcome.ended and outcome.model_saved and outcome.stopped_by is None
    assert 4 < outcome.steps <= 6 and len(world.trainer.batches) == outcome.steps
    assert world.of(SnapshotTaken)[-1][1].step == world.checkpoints.states[-1].step == outcome.steps
    assert world.of(Evaluated)[-1][1].step == outcome.steps and outcome.accuracy_after == 1.0
    assert outcome.counters["trained"] == 2 * outcome.steps


def test_a_run_ends_on_a_plateau_and_after_its_hours() -> None:
    plateau, _ = run(Limits(patience=2))
    assert "eval.patience 2" in plateau.ended and 4 < plateau.steps <= 6
    timed, world = run(Limits(hours=3 / 3600))
    assert "train.max_hours" in timed.ended and 2 <= timed.steps <= 4
    assert world.checkpoints.states[-1].step == timed.steps


def test_a_run_that_reaches_its_target_with_its_last_step_has_not_ended_early() -> None:
    outcome, world = run(Limits(hours=1e-9), steps=1)
    assert (outcome.ended, outcome.steps, world.checkpoints.states) == ("", 1, [])
