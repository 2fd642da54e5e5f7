"""Which steps a run does, evaluates after and saves after."""

from __future__ import annotations

from dapo_openrlhf.pipeline.schedule import Schedule


def after(schedule: Schedule) -> tuple[list[int], list[int]]:
    """The numbers of steps done after which it evaluates, and saves."""
    done = [step + 1 for step in schedule.steps]
    return [n for n in done if schedule.evaluate_after(n)], [n for n in done if schedule.save_after(n)]


def test_the_end_is_a_matter_of_its_own() -> None:
    assert after(Schedule(max_steps=6, eval_steps=2, save_steps=3)) == ([2, 4], [3])


def test_a_resumed_run_keeps_to_the_steps_of_the_first() -> None:
    schedule = Schedule(max_steps=10, eval_steps=4, save_steps=3, first_step=5)
    assert list(schedule.steps) == [5, 6, 7, 8, 9]
    assert after(schedule) == ([8], [6, 9])


def test_without_intervals_nothing_happens_in_between() -> None:
    schedule = Schedule(max_steps=3)
    assert (after(schedule), schedule.saves) == (([], []), False)
    assert Schedule(max_steps=3, save_steps=9).saves, "the last step is saved"
