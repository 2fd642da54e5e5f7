"""What is measured is kept, whatever ends the bench; and how much is measured."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dapo_openrlhf.bench.arm import Arm, ArmError, Measurement
from dapo_openrlhf.bench.comparison import table, verdicts
from dapo_openrlhf.bench.foreign_load import ForeignLoad, ProcessorTime
from dapo_openrlhf.bench.record import Record, RecordUnreadable
from dapo_openrlhf.bench.schedule import Budget, run_in_turn
from dapo_openrlhf.stopping import Stopped

RUN = Measurement(
    step_seconds=(2.0, 3.0), trained_tokens=100.0, generate_seconds=1.0, train_seconds=2.0, busier_seconds=2.0,
    publish_seconds=0.1, mean_age=0.5, max_age=1, pass_rate=0.5,
)  # fmt: skip
WORK = {"steps": 5, "actor": {"model_name_or_path": "m"}}


def a_record(folder: Path, work: dict[str, object] | None = None) -> Record:
    return Record(file=folder / "bench.json", work=work or WORK, machine={"cores": 2})


def arms(begun: list[str], run: Callable[[str], Measurement] = lambda key: RUN) -> dict[str, Arm]:
    def arm(key: str) -> Arm:
        def measure(folder: Path) -> Measurement:
            begun.append(key)
            return run(key)

        return Arm(name=f"arm {key}", run=measure, devices=3)

    return {key: arm(key) for key in ("k0", "k1")}


def test_arms_are_interleaved_and_every_run_is_in_the_file_at_once(tmp_path: Path) -> None:
    begun: list[str] = []
    record = a_record(tmp_path)
    kept: list[int] = []

    def run(key: str) -> Measurement:
        kept.append(
            sum(len(arm["measured"]) for arm in json.loads(record.file.read_text())["arms"]) if begun[1:] else 0
        )
        return RUN

    assert run_in_turn(arms(begun, run), Budget(repeats=2), record, say=lambda line: None) == {}
    assert (begun, kept) == (["k0", "k1"] * 2, [0, 1, 2, 3])
    assert record.results()["k1"].devices == 3


def test_a_bench_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    begun: list[str] = []

    def stopped(key: str) -> Measurement:
        if len(begun) == 4:
            raise Stopped(signal.SIGINT)
        return RUN

    record = a_record(tmp_path)
    with pytest.raises(Stopped) as caught:
        run_in_turn(arms(begun, stopped), Budget(repeats=2), record, say=lambda line: None)
    assert caught.value.words == (
        f"the 3 runs that were measured are in {record.file}; the same command with --resume {record.file} goes on"
    )
    resumed = a_record(tmp_path)
    resumed.take(record.file)
    begun.clear()
    run_in_turn(arms(begun), Budget(repeats=2), resumed, say=lambda line: None)
    assert begun == ["k1"]
    assert resumed.results().keys() == {"k0", "k1"} and resumed.count == 4


def test_an_arm_that_fails_costs_no_other(tmp_path: Path) -> None:
    begun: list[str] = []
    said: list[str] = []

    def run(key: str) -> Measurement:
        if key == "k0":
            raise ArmError("no memory")
        return RUN

    record = a_record(tmp_path)
    assert run_in_turn(arms(begun, run), Budget(repeats=3), record, say=said.append) == {"k0": "no memory"}
    assert begun == ["k0", "k1", "k1", "k1"]
    assert said[0] == "arm k0 failed, and is not run again: no memory"


@pytest.mark.parametrize(("seconds", "rounds"), [(65.0, 3), (1.0, 1)])
def test_the_rounds_fit_into_the_time(tmp_path: Path, seconds: float, rounds: int) -> None:
    """A round takes 20 s by what the first measured: three fit into 65 s, and one always is."""
    begun: list[str] = []
    record = a_record(tmp_path)
    budget = Budget(repeats=1000, seconds=seconds)
    run_in_turn(arms(begun), budget, record, say=lambda line: None, clock=lambda: 10.0 * len(begun))
    assert begun == ["k0", "k1"] * rounds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        ("[]", "holds no runs of a bench: Input should be an object"),
        ("{", "holds no runs of a bench"),
        (
            '{"work": {"steps": 5}, "arms": [{"key": "k0", "name": "a", "devices": 1, "measured": [{}]}]}',
            "arms.0.measured.0.step_seconds: Field required",
        ),
        ('{"work": [], "arms": []}', "holds no runs of a bench"),
        (
            '{"work": {}, "arms": [{"key": "k0", "name": "a", "devices": 1, "measured": [[1]]}]}',
            "holds no runs of a bench",
        ),
        (
            '{"work": {}, "arms": [{"key": "k0", "name": "a", "devices": 1, "measured": []}]}',
            "arms.0.measured: .* at least 1",
        ),
        ('{"work": {"steps": 6, "actor": {"model_name_or_path": "m"}}, "arms": []}', "steps was 6, and is 5"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RecordUnreadable, match=words):
        a_record(tmp_path).take(file)


def test_what_other_programs_take_is_what_is_neither_idle_nor_mine() -> None:
    """Of 10 s on two cores 8 s are busy: 5 s mine, one of them by a process that is new, and 3 s others'."""
    load = ForeignLoad()
    load.add(ProcessorTime(100.0, 50.0, {1: 7.0}), ProcessorTime(120.0, 58.0, {1: 11.0, 2: 1.0}))
    assert load.share == pytest.approx(3 / 20)
    load.add(ProcessorTime(120.0, 58.0, {1: 11.0}), ProcessorTime(140.0, 58.0, {1: 11.0}))
    assert load.share == pytest.approx(3 / 40)
    assert ForeignLoad().share == 0.0


def test_a_loaded_machine_is_named(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    for key, arm in arms([]).items():
        for load in (0.0, 0.4 if key == "k1" else 0.05):
            record.add(key, arm, replace(RUN, foreign_load=load))
    results = record.results()
    head, k0, k1 = table([results["k0"], results["k1"]]).splitlines()
    assert head.endswith("foreign load") and k0.endswith("-") and k1.endswith("40%")
    assert any("other programs took up to 40% of the machine's processor time" in line for line in verdicts(results))
