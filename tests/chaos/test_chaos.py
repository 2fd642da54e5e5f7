"""The check of event logs behind ``make chaos``, against logs that are wrong in each way; and the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from scripts.chaos.ledger import Ledger, ledger_of
from scripts.chaos.rows import ROWS, SHORT, chosen
from scripts.chaos.run_log import STEP, RunLog

Log = list[dict[str, Any]]


def begun(first_step: int = 0, bound: int = 1) -> Log:
    return [{"event": "run_started", "time": 0.0, "unix_time": 0.0, "max_staleness": bound, "first_step": first_step}]


def dispatched(*pairs: tuple[int, int]) -> Log:
    """Groups and their prompts."""
    return [{"event": "group_dispatched", "time": 1.0, "group": group, "prompt": prompt} for group, prompt in pairs]


def judged(group: int, *, keep: bool = True, reason: str = "kept", time: float = 2.0) -> Log:
    return [{"event": "group_judged", "time": time, "group": group, "keep": keep, "reason": reason}]


def taken(step: int, *groups: int, version: int | None = None, age: int = 0) -> Log:
    version = step if version is None else version
    ages = [age] * len(groups)
    return [{"event": "batch_taken", "time": 3.0, "step": step, "version": version, "groups": groups, "ages": ages}]


def live(version: int) -> Log:
    return [{"event": "publication_live", "time": 4.0, "version": version}]


def saved(step: int, *, time: float = 5.0) -> Log:
    return [{"event": "checkpointed", "time": time, "step": step, "path": "p", "seconds": 1.0}]


def left(what: str, group: int) -> Log:
    return [{"event": what, "time": 2.5, "group": group, "reason": "engine_died"}]


def step(number: int, *, prompt: int | None = None) -> Log:
    """A step of one group, with the number of the step."""
    prompt = number if prompt is None else prompt
    return [*dispatched((number, prompt)), *judged(number), *taken(number, number), *live(number + 1)]


def test_a_run_in_which_all_is_well() -> None:
    log = [
        *begun(), *dispatched((0, 5), (1, 6), (2, 7), (3, 8)), *judged(0), *judged(1, keep=False, reason="all_wrong"),
        *judged(2), *taken(0, 0), *live(1), *left("group_failed", 3), *dispatched((4, 8)), *judged(4),
        *taken(1, 2, 4, age=1), *live(2),
    ]  # fmt: skip
    ledger = ledger_of(log)
    assert (ledger.problems, ledger.trained, ledger.steps_lost) == ([], 3, 0)


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ([*step(0), *dispatched((1, 0)), *judged(1), *taken(1, 1)], "prompt 0 ended more than once: trained as group 0 in step 0, then trained as group 1 in step 1"),
        ([*dispatched((0, 3)), *judged(0, keep=False, reason="all_right"), *dispatched((1, 3)), *judged(1), *taken(0, 1)], "prompt 3 ended more than once: all_right as group 0, then trained"),
        ([*dispatched((0, 3)), *judged(0, keep=False, reason="")], "group 0 was dropped without a reason"),
        ([*dispatched((0, 3)), *judged(0), *taken(0, 0, age=2)], "group 0 was trained at age 2, not at 0 to 1"),
        ([*dispatched((0, 3)), *judged(0), *taken(0, 0, age=-1)], "group 0 was trained at age -1"),
        ([*dispatched((0, 3)), *taken(0, 0)], "group 0 was trained in step 0, but was not kept"),
        ([*dispatched((0, 3)), *judged(0), *left("group_surplus", 0), *taken(0, 0)], "group 0 was trained in step 0, but was not kept"),
        ([*dispatched((0, 3)), *judged(0), *taken(0, 0), *taken(1, 0)], "group 0 was trained in step 1, but was not kept"),
        ([*dispatched((0, 3), (0, 4))], "group 0 was dispatched twice"),
        ([*judged(0)], "group 0 was judged, but was not in flight"),
        ([*left("group_failed", 0)], "group 0 failed or was surplus, but was neither"),
        ([*dispatched((0, 3)), *judged(0), *taken(1, 0)], "step 1 was trained at version 1, not step 0"),
        ([*dispatched((0, 3)), *judged(0), *taken(0, 0, version=1)], "step 0 was trained at version 1"),
        ([*step(0), *live(1)], "version 1 came after version 1"),
        ([*step(0), *live(3)], "version 3 came after version 1"),
        ([*step(0), *begun(2)], "the run goes on after 2 steps, but 1 were done"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(log: Log, problem: str) -> None:
    ledger = ledger_of([*begun(), *log])
    assert ledger.problems and ledger.problems[0].startswith(problem)


def resumed(*, dropped_at: float) -> Ledger:
    """Three steps of which the last one is done again, beside a prompt that was dropped once in each process."""
    first = [
        *step(0),
        *step(1),
        *saved(2),
        *dispatched((9, 9)),
        *judged(9, keep=False, reason="all_wrong", time=dropped_at),
    ]
    second = [
        *dispatched((0, 2), (1, 9)),
        *judged(0),
        *judged(1, keep=False, reason="all_right"),
        *taken(2, 0),
        *live(3),
    ]
    return ledger_of([*begun(), *first, *step(2), *begun(2), *second])


def test_what_came_after_the_checkpoint_comes_again() -> None:
    ledger = resumed(dropped_at=4.5)
    assert (ledger.problems, ledger.trained, ledger.steps_lost) == ([], 3, 1)


def test_what_came_before_the_checkpoint_must_not_come_again() -> None:
    ledger = resumed(dropped_at=3.5)
    assert ledger.problems == ["prompt 9 ended more than once: all_wrong as group 9, then all_right as group 1"]


def test_a_run_that_goes_back_by_itself() -> None:
    """Groups may be numbered anew or not, and the checkpoint's version may be sent to the engines once more."""
    back = [{"event": "rewound", "time": 6.0, "to_step": 1}]
    again = [*live(1), *dispatched((10, 1)), *judged(10), *taken(1, 10), *live(2)]
    anew = [*dispatched((0, 1)), *judged(0), *taken(1, 0), *live(2)]
    for after in (again, anew):
        ledger = ledger_of([*begun(), *step(0), *saved(1), *step(1), *back, *after])
        assert (ledger.problems, ledger.trained, ledger.steps_lost) == ([], 2, 1)
    assert ledger_of([*begun(), *step(0), *step(1), *step(1)]).problems


PHASES: Sequence[tuple[str, Log]] = [
    ("generating", dispatched((7, 7))),
    ("training", taken(STEP, 1)),
    ("publishing", []),
]


@pytest.mark.parametrize(("phase", "log"), PHASES)
def test_a_phase_begins_with_its_events_and_ends_with_others(phase: Any, log: Log, tmp_path: Any) -> None:
    followed = RunLog(tmp_path)
    followed.follow()
    assert not followed.in_phase(phase)
    followed.events += [*taken(STEP - 1, 0), {"event": "step_trained", "step": STEP - 1}, *log]
    assert followed.in_phase(phase)
    followed.events += [
        {"event": "group_generated", "group": 7},
        {"event": "step_trained", "step": STEP},
        *live(STEP + 1),
    ]
    assert not followed.in_phase(phase)


def test_saving_is_while_a_checkpoint_is_unfinished(tmp_path: Any) -> None:
    from dapo_openrlhf.pipeline.checkpoint import Checkpoints

    followed = RunLog(tmp_path)
    followed.events.append({"event": "step_trained", "step": STEP})
    assert not followed.in_phase("saving")
    Checkpoints(tmp_path / "checkpoints", max_num=1).begin(STEP)
    assert followed.in_phase("saving")


def test_every_fault_meets_every_phase_on_every_carrier() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == 6 * 4 * 2
    assert {row.name for row in chosen(SHORT)} == set(SHORT)
    assert len([*chosen(("engine_*/publishing/*",))]) == 4
