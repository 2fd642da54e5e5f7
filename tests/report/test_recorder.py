"""What the recorder makes of a run's events, and what its sinks make of that."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_files import evaluated, run_started, write_events
from fakes import World, build

from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import (
    Evaluated,
    Event,
    GroupFailed,
    PromptDropped,
    Rewound,
    StepDone,
    TrainerReplaced,
    UpdateSkipped,
)
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.report.curves import Curves
from dapo_openrlhf.report.history import Earlier, Measured, earlier_life
from dapo_openrlhf.report.metrics_file import MetricsFile, earlier_rows
from dapo_openrlhf.report.notices import DROPPED_SHOWN, FAILURES_SHOWN, Notices
from dapo_openrlhf.report.recorder import Recorder, Sink
from dapo_openrlhf.report.responses import Responses, read_verdicts
from dapo_openrlhf.report.watch import Watch
from dapo_openrlhf.types import PolicyVersion


class Heard(Sink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.steps: list[tuple[int, Row, float]] = []
        self.closed = 0

    def event(self, event: Event) -> None:
        self.events.append(event)

    def step(self, step: int, row: Row, elapsed: float) -> None:
        assert isinstance(self.events[-1], StepDone)
        self.steps.append((step, row, elapsed))

    def close(self) -> None:
        self.closed += 1


class Quiet(Sink):
    """Wants nothing."""


def recorded(*sinks: Sink, steps: int = 3, warn: Callable[[str], None] = pytest.fail) -> tuple[World, Recorder]:
    """A run of a second of generation and a second of training a step, with two evaluations."""

    async def main() -> tuple[World, Recorder]:
        log = EventLog(None, clock=asyncio.get_running_loop().time)
        recorder = Recorder(log, sinks, devices=2, warn=warn)
        world = build(steps=steps, max_staleness=0, problem_count=2, log=log)
        await world.run()
        return world, recorder

    return run_virtual(main())


def test_sinks_hear_every_event_and_every_steps_row() -> None:
    heard, quiet = Heard(), Quiet()
    world, recorder = recorded(quiet, heard)
    assert heard.events == [event for _, event in world.events]
    assert [step for step, _, _ in heard.steps] == [0, 1, 2]
    assert [elapsed for _, _, elapsed in heard.steps] == [time for time, _ in world.of(StepDone)]
    lengths = [sum(sum(group.lengths) for group in batch.groups) for batch in world.trainer.batches]
    trained = [row["tokens_per_second/trained"] * row["seconds/step"] for _, row, _ in heard.steps]
    assert trained == pytest.approx(lengths)
    assert recorder.tokens("trained") == sum(lengths)


class Unlucky(Sink):
    """Never finds room."""

    name = "the picture"

    def event(self, event: Event) -> None:
        raise OSError("disk full")

    def step(self, step: int, row: Row, elapsed: float) -> None:
        raise OSError("disk full")

    def close(self) -> None:
        raise OSError("disk full")


def test_a_sink_that_cannot_write_never_ends_the_run_and_is_told_of_once() -> None:
    first, last = Heard(), Heard()
    said: list[str] = []
    world, recorder = recorded(first, Unlucky(), last, warn=said.append)
    recorder.close()
    assert first.events == last.events == [event for _, event in world.events]
    assert len(first.steps) == len(last.steps) == 3
    assert (first.closed, last.closed) == (1, 1)
    assert said == ["warning: the picture cannot be written, and the run goes on without: disk full"]


def test_what_found_no_room_is_written_once_there_is_room_again(tmp_path: Path) -> None:
    class Disk(io.RawIOBase):
        """Takes ten bytes, until there is room."""

        taken, room = b"", 10

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if len(self.taken) >= self.room:
                raise OSError(errno.ENOSPC, "full")
            part = bytes(data)[: self.room - len(self.taken)]
            self.taken += part
            return len(part)

    sink, disk = MetricsFile(tmp_path / "metrics.jsonl"), Disk()
    sink._file = io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8")
    for step in range(2):
        with pytest.raises(OSError, match="full"):
            sink.step(step, {"reward": 1.0}, 0.0)
    disk.room = 1000
    sink.step(2, {"reward": 1.0}, 0.0)
    assert [json.loads(line)["step"] for line in disk.taken.splitlines()] == [0, 1, 2]


def test_rows_are_in_the_file_at_once_and_those_done_anew_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert earlier_rows(path, 5) == []
    sink = MetricsFile(path)
    for step in range(3):
        sink.step(step, {"reward": float(step)}, 0.0)
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": step, "reward": step}
    sink.close()
    assert earlier_rows(path, 2) == [{"reward": 0.0}, {"reward": 1.0}]
    assert path.read_text().splitlines() == ['{"step": 0, "reward": 0.0}', '{"step": 1, "reward": 1.0}']
    with path.open("a") as file:
        file.write('{"step": 1, "rew\n[]\n{"reward": 3.0}\n')
    assert earlier_rows(path, 5) == [{"reward": 0.0}, {"reward": 1.0}]
    assert len(path.read_text().splitlines()) == 2


def test_each_evaluations_responses_have_a_file(tmp_path: Path) -> None:
    recorded(Responses(lambda step, key: tmp_path / key / f"step-{step}.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0.jsonl", "step-3.jsonl"]
    assert [problem.judged for problem in read_verdicts(tmp_path / "step-3.jsonl").values()] == [2, 2]


def test_the_curves_hold_what_was_done_before_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dapo_openrlhf.report import picture

    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(picture, "draw_run", lambda *arguments, rewinds: drawn.append((*arguments, rewinds)))
    earlier = {0: {"reward": 1.0}, 2: {"reward": 3.0}}  # the row between is lost, and keeps its place
    sink = Curves(tmp_path / "curves.png", title="run", earlier=earlier, measured={0: 0.25, 3: 0.3})
    sink.event(_evaluated(3, accuracy=0.5))
    sink.step(3, {"reward": 2.0}, 0.0)
    sink.close()
    rows = [{"reward": 1.0}, {}, {"reward": 3.0}, {"reward": 2.0}]
    assert drawn == [(rows, [(0, 0.25), (3, 0.5)], tmp_path / "curves.png", "run", [])]


def test_a_resumed_run_is_counted_from_its_first_start(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert earlier_life(file, 4) == Earlier(steps=4, lives=1), "its log is gone"
    times = [(0.0, run_started(0.0)), (1.0, evaluated(0, 0.1)), (2.0, evaluated(4, 0.3)), (3.0, evaluated(6, 0.9))]
    write_events(file, times)
    write_events(file, [(0.0, run_started(9.0)), (1.0, evaluated(4, 0.4))])
    with file.open("a") as log:
        log.write("damaged\n")
    earlier = earlier_life(file, 4)
    assert (earlier.steps, earlier.lives) == (4, 2)
    before = earlier.evaluations
    assert {step: one.accuracy for step, one in before.items()} == {0: 0.1, 4: 0.4}, "what came after it is undone"
    assert earlier_life(file, 0) == Earlier(), "a new run"
    rows = {0: {"seconds/step": 2.0, "tokens_per_second/trained": 3.0, "policy_age/max": 1.0}, 1: {"seconds/step": 0.5}}
    earlier = replace(earlier, rows=rows)
    assert (earlier.seconds, earlier.tokens("trained"), earlier.tokens("generated"), earlier.max_policy_age) == (
        2.5,
        6,
        0,
        1,
    )
    history = Measured(before, first_step=4)
    history.event(evaluated(4, 0.4))
    history.event(evaluated(6, 0.5))
    assert history.start is not None and history.start.accuracy == 0.1
    other = Measured(before, first_step=4)
    other.event(replace(evaluated(4, 0.4), problems=2))
    assert other.start is not None and other.start.accuracy == 0.4, "of other problems nothing follows"
    assert Measured({}, first_step=0).start is None


def _evaluated(step: int, *, accuracy: float, errors: int = 0) -> Evaluated:
    return Evaluated(
        step=step,
        version=PolicyVersion(step),
        accuracy=accuracy,
        problems=4,
        responses=8,
        errors=errors,
        seconds=1.0,
    )


def test_what_happens_is_said_and_what_happens_often_is_said_a_few_times() -> None:
    said: list[str] = []
    notices = Notices(said.append, watch=Watch(batch_size=2, max_new_tokens=9, say=said.append))
    notices.event(_evaluated(0, accuracy=0.25))
    notices.event(_evaluated(2, accuracy=0.5, errors=3))
    notices.event(UpdateSkipped(step=1, update=0, not_finite={"loss": 2}, in_a_row=1, path="there"))
    assert said == [
        "held-out accuracy 25.0% on 4 problems after 0 steps",
        "held-out accuracy 50.0% on 4 problems after 2 steps; 3 of 8 responses were errors",
        "warning: update 0 of step 1 was stopped before the optimizer saw it: not finite were loss (2); 1 in a row; "
        "its batch is in there",
    ]
    said.clear()
    for group in range(50):
        notices.event(GroupFailed(group=group, reason="engine_error", message="broken"))
    assert said == [f"group {group} failed (engine_error): broken" for group in range(FAILURES_SHOWN)]
    said.clear()
    for prompt in range(50):
        notices.event(PromptDropped(prompt=prompt, reason="prompt_fails", message=f"prompt {prompt} is dropped"))
    assert said == [f"prompt dropped (prompt_fails): prompt {n} is dropped" for n in range(DROPPED_SHOWN)]


def rewound(from_step: int, to_step: int, *, restart: int = 1) -> Rewound:
    return Rewound(
        from_step=from_step, to_step=to_step, restart=restart, max_restarts=3, pause=2.0, message="rank 0 died"
    )  # fmt: skip


def test_what_a_rewind_undoes_is_in_no_row_and_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of four steps goes back to its second one and does two more, from which on rows say so."""
    drawn: list[tuple[list[Row], list[tuple[int, float]], list[int]]] = []

    def draw_run(
        rows: list[Row], evaluations: list[tuple[int, float]], path: Path, title: str, *, rewinds: list[int]
    ) -> None:
        drawn.append((list(rows), list(evaluations), list(rewinds)))

    monkeypatch.setattr("dapo_openrlhf.report.picture.draw_run", draw_run)
    heard, file = Heard(), tmp_path / "metrics.jsonl"
    sinks = [heard, MetricsFile(file), Curves(tmp_path / "curves.png", title="")]

    async def main() -> Recorder:
        log = EventLog(None, clock=asyncio.get_running_loop().time)
        recorder = Recorder(log, sinks, devices=2)
        world = build(steps=4, max_staleness=0, problem_count=2, eval_steps=3, log=log, checked=False)
        await world.run()
        done = list(heard.events)
        log.emit(rewound(4, 2))
        await asyncio.sleep(100.0)
        second = next(index for index, event in enumerate(done) if isinstance(event, StepDone) and event.step == 1)
        for event in done[second + 1 :]:
            log.emit(event)
        return recorder

    recorder = run_virtual(main())
    recorder.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line.get("trainer/restarts") for line in lines] == [None, None, 1.0, 1.0]
    assert all(row["seconds/step"] < 100.0 for _, row, _ in heard.steps), "the time without a trainer is no step's"
    ((rows, evaluations, rewinds),) = drawn
    assert [{"step": step, **row} for step, row in enumerate(rows)] == lines
    assert ([step for step, _ in evaluations], rewinds) == ([0, 3, 4], [2])
    trained = sum(row["tokens_per_second/trained"] * row["seconds/step"] for row in rows)
    assert recorder.tokens("trained") == round(trained)


def test_the_loss_of_the_trainer_is_told_in_one_line() -> None:
    said: list[str] = []
    notices = Notices(said.append, watch=Watch(batch_size=1, max_new_tokens=1, say=said.append))
    for event in (
        rewound(7, 5),
        TrainerReplaced(step=5, seconds=31.25),
        rewound(5, 5, restart=3),
        rewound(2, 0),
        rewound(6, 4, restart=0),
    ):
        notices.event(event)
    assert said == [
        "warning: rank 0 died; 2 of 7 rollout steps are lost, and a new trainer goes on from the newest good checkpoint in 2 s "
        "(restart 1 of 3 within an hour, train.max_restarts)",
        "a new trainer goes on after 5 rollout steps, 31.2 s after the loss",
        "warning: rank 0 died; no rollout step is lost, and a new trainer goes on from the newest good checkpoint in 2 s "
        "(restart 3 of 3 within an hour, train.max_restarts)",
        "warning: rank 0 died; 2 of 2 rollout steps are lost, and a new trainer goes on from the start in 2 s "
        "(restart 1 of 3 within an hour, train.max_restarts)",
        "warning: rank 0 died; 2 of 6 rollout steps are lost",
    ]
