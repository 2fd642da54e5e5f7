"""The best checkpoint by an evaluation is kept beside the newest, whenever its evaluation arrives."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import build

from dapo_openrlhf.pipeline.best import EVALUATION_FILE, best_of, evaluation_of
from dapo_openrlhf.pipeline.checkpoint import Checkpoints, RunState, damage
from dapo_openrlhf.pipeline.prompts import PromptState
from dapo_openrlhf.plan.virtual_time import run_virtual


def make(checkpoints: Checkpoints, step: int) -> Path:
    Path(checkpoints.begin(step), "model.safetensors").write_text(str(step))
    return Path(checkpoints.finish(state(step)))


def state(step: int) -> RunState:
    return RunState(step=step, prompts=PromptState(drawn=step, returned=(), prompt_count=50))


def steps(checkpoints: Checkpoints) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints.finished()]


def best(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.best()
    return None if found is None else int(found.name.removeprefix("step-"))


def accuracy(value: float) -> dict[str, float]:
    return {"avg@4": value, "pass@4": 1 - value}


VALUES = (0.3, 0.7, 0.5, 0.6, 0.7, 0.1, 0.2)


def test_the_best_survives_all_that_follow_until_one_is_better(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=1)
    kept = []
    for step, value in enumerate(VALUES):
        make(checkpoints, step)
        checkpoints.evaluated(step, accuracy(value))
        kept.append(steps(checkpoints))
    assert kept == [[0], [0, 1], [1, 2], [1, 3], [1, 4], [4, 5], [4, 6]], "of two equals the later one"
    assert best(checkpoints) == 4


def test_an_evaluation_may_end_before_its_checkpoint_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=1)
    kept = []
    for step, value in enumerate(VALUES):
        folder = Path(checkpoints.begin(step))
        checkpoints.evaluated(step, accuracy(value))
        (folder / "model.safetensors").write_text(str(step))
        checkpoints.finish(state(step))
        kept.append(steps(checkpoints))
    assert kept == [[0], [1], [1, 2], [1, 3], [4], [4, 5], [4, 6]]
    assert best(checkpoints) == 4


def test_an_evaluation_does_no_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=1)
    path = make(checkpoints, 3)
    checkpoints.evaluated(3, accuracy(0.5))
    checkpoints.evaluated(3, accuracy(0.25))
    assert damage(path) == []
    assert evaluation_of(path, "") == ("avg@4", 0.25)
    assert evaluation_of(path, "pass@4") == ("pass@4", 0.75)
    assert evaluation_of(path, "maj@4") is None


def test_another_number_may_say_which_is_the_best(tmp_path: Path) -> None:
    for metric, expected in (("", 2), ("pass@4", 1), ("maj@2", None), ("none", None)):
        checkpoints = Checkpoints(tmp_path / (metric or "accuracy"), max_num=3, best_metric=metric)
        for step, value in ((1, 0.2), (2, 0.8)):
            make(checkpoints, step)
            checkpoints.evaluated(step, accuracy(value))
        assert best(checkpoints) == expected


def test_it_is_known_after_a_resume_too(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, max_num=2)
    for step, value in ((1, 0.9), (2, 0.1), (3, 0.2)):
        make(first, step)
        first.evaluated(step, accuracy(value))
    again = Checkpoints(tmp_path, max_num=2, first_step=3)
    again.evaluated(3, accuracy(0.3))  # a resumed run measures first what it has resumed
    for step in (4, 5, 6):
        make(again, step)
    assert (steps(again), best(again)) == ([1, 5, 6], 1)
    said: list[str] = []
    assert again.newest_good(said.append) == tmp_path / "step-000006" and not said


def test_what_is_left_of_other_weights_is_not_taken_for_this_runs(tmp_path: Path) -> None:
    """A run resumed before a damaged checkpoint makes that step anew."""
    first = Checkpoints(tmp_path, max_num=9)
    for step, value in ((1, 0.2), (2, 0.9)):
        make(first, step)
        first.evaluated(step, accuracy(value))
    again = Checkpoints(tmp_path, max_num=9, first_step=1)
    again.evaluated(2, accuracy(0.1))
    assert evaluation_of(tmp_path / "step-000002", "") == ("avg@4", 0.9), (
        "that checkpoint holds the other run's weights"
    )
    make(again, 2)
    assert evaluation_of(tmp_path / "step-000002", "") == ("avg@4", 0.1)
    assert best(again) == 1


def test_a_step_that_is_made_again_has_no_evaluation_until_it_is_measured(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, max_num=9)
    make(first, 5)
    first.evaluated(5, accuracy(0.9))
    make(Checkpoints(tmp_path, max_num=9, first_step=4), 5)
    assert evaluation_of(tmp_path / "step-000005", "") is None


def test_after_a_rewind_older_numbers_of_later_steps_are_forgotten(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=9)
    for step in (4, 5):
        make(checkpoints, step)
        checkpoints.evaluated(step, accuracy(0.1 * step))
    make(checkpoints, 4)
    make(checkpoints, 5)
    assert evaluation_of(tmp_path / "step-000005", "") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 20,
        b"[]",
        b"3",
        b'{"avg@4": "much"}',
        b'{"avg@4": NaN}',
        b'{"avg@4": null}',
        b'{"avg@4": 1',
        b"\xff",
    ],
)
def test_a_damaged_evaluation_counts_as_none(tmp_path: Path, content: bytes) -> None:
    checkpoints = Checkpoints(tmp_path, max_num=9)
    paths = [make(checkpoints, step) for step in (1, 2)]
    for step in (1, 2):
        checkpoints.evaluated(step, accuracy(0.1 * step))
    (paths[1] / EVALUATION_FILE).write_bytes(content)
    assert best_of(paths, "") == paths[0]
    (paths[0] / EVALUATION_FILE).unlink()
    assert best_of(paths, "") is None


def test_a_run_hands_over_every_evaluation() -> None:
    async def main() -> None:
        world = build(steps=5, problem_count=2, eval_steps=2, save_steps=3)
        await world.run()
        assert {step: found["avg@2"] for step, found in world.checkpoints.evaluations.items()} == dict.fromkeys(
            (0, 2, 4, 5), 0.5
        )

    run_virtual(main())
