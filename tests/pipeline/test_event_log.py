"""The event log: every event is one line of JSON, at once."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import math
import random
import shutil
from pathlib import Path

import pytest
from event_files import write_events
from fakes import FakeEngine, FakeScorer, World, build, filtered

from dapo_openrlhf.pipeline import event_log
from dapo_openrlhf.pipeline.event_file import LogFile
from dapo_openrlhf.pipeline.event_log import KINDS, EventLog, EventLogError, Logged, read
from dapo_openrlhf.pipeline.events import Checkpointed, Event, StepTrained, UpdateSkipped, WorkerSpans
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Span
from dapo_openrlhf.whole_file import Unwritable

NOT_IN_THIS_RUN = {
    "RunStarted", "WorkerSpans", "EngineLost", "EngineReplaced", "EngineSilent", "EngineAnswers", "EngineGivenUp",
    "GroupCut", "GroupSurplus", "PromptDropped", "UpdateSkipped", "Rewound", "TrainerReplaced", "ResponseSampled",
}  # fmt: skip
FOR_LISTENERS = {"measured", "prompt_text", "label", "response", "answer"}
"""Responses, with what belongs to them."""
FIELDS = {
    kind.__name__: {one.name for one in dataclasses.fields(kind)} - FOR_LISTENERS for kind in Event.__subclasses__()
}
"""What the log has of each event."""


def logged_run() -> tuple[World, str]:
    """A run in which everything happens that can be logged."""

    async def main() -> tuple[World, str]:
        chance = random.Random(3)
        file = io.StringIO()
        world = build(
            engines=[
                FakeEngine(
                    latency=lambda: chance.uniform(1.0, 9.0),
                    fault=lambda prompt: (
                        GroupError("engine_error", 'broken: "½"\n')
                        if prompt.id < 1000 and chance.random() < 0.2
                        else None
                    ),
                )
            ],
            scorer=FakeScorer(pattern=filtered(0.4, seed=3)),
            steps=6,
            problem_count=2,
            eval_steps=2,
            save_steps=3,
            deliver_seconds=lambda: 1.0,
            log=EventLog(file, clock=asyncio.get_running_loop().time),
        )
        await world.run()
        return world, file.getvalue()

    return run_virtual(main())


def test_the_log_holds_every_event_of_a_run_as_strict_json() -> None:
    world, text = logged_run()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert {type(event).__name__ for _, event in world.events} == FIELDS.keys() - NOT_IN_THIS_RUN
    assert len(lines) == len(world.events)
    for line, (time, event) in zip(lines, world.events, strict=True):
        assert line.pop("time") == pytest.approx(time, abs=1e-6)
        assert line.pop("event").replace("_", "") == type(event).__name__.lower()
        assert line.keys() == FIELDS[type(event).__name__]
        fields = dataclasses.asdict(event)
        assert line == json.loads(json.dumps({name: fields[name] for name in line}))
    times = [json.loads(line)["time"] for line in text.splitlines()]
    assert times == sorted(times)


def test_events_are_named_in_snake_case() -> None:
    file = io.StringIO()
    EventLog(file, clock=lambda: 0.0).emit(Checkpointed(step=3, path="there", seconds=0.5))
    assert file.getvalue() == '{"time":0.0,"event":"checkpointed","step":3,"path":"there","seconds":0.5}\n'
    assert '"event":"group_dispatched"' in logged_run()[1]


def test_time_counts_from_the_logs_creation() -> None:
    times = iter([100.0, 100.25, 107.5])
    file = io.StringIO()
    log = EventLog(file, clock=lambda: next(times))
    assert log.now() == 0.25
    log.emit(StepTrained(step=0, seconds=1.0, statistics={"loss": 0.5}))
    assert json.loads(file.getvalue())["time"] == 7.5


def test_lines_are_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("w") as file:
        log = EventLog(file, clock=lambda: 0.0)
        for step in range(3):
            log.emit(Checkpointed(step=step, path="there", seconds=0.0))
            assert len(path.read_text().splitlines()) == step + 1


def test_a_log_that_is_no_longer_where_it_was_or_finds_no_room_is_an_error(tmp_path: Path) -> None:
    event = Checkpointed(step=0, path="there", seconds=0.0)
    run = tmp_path / "run"
    for spoil, cause in (
        (lambda: shutil.rmtree(run), "No such file or directory"),
        (lambda: (run.rename(tmp_path / "old"), run.touch()), "Not a directory"),
        (lambda: (run / "events.jsonl").rename(run / "moved"), "No such file or directory"),
    ):
        run.unlink() if run.is_file() else None
        run.mkdir()
        with LogFile(run / "events.jsonl") as file:
            log = EventLog(file, clock=lambda: 0.0)
            log.emit(event)
            spoil()
            for _ in range(2):
                with pytest.raises(Unwritable, match=rf"run/events.jsonl cannot be written: {cause}; its folder is"):
                    log.emit(event)
    (tmp_path / "full").symlink_to("/dev/full")
    with (
        pytest.raises(Unwritable, match="full cannot be written: No space left on device"),
        LogFile(tmp_path / "full") as file,
    ):
        EventLog(file, clock=lambda: 0.0).emit(event)


def test_listeners_hear_every_later_event_in_order_and_need_no_file() -> None:
    log = EventLog(None, clock=lambda: 0.0)
    heard: list[tuple[str, Event]] = []
    first, second = (Checkpointed(step=step, path="there", seconds=0.0) for step in range(2))
    log.listen(lambda event: heard.append(("early", event)))
    log.emit(first)
    log.listen(lambda event: heard.append(("late", event)))
    log.emit(second)
    assert heard == [("early", first), ("early", second), ("late", second)]


def test_what_workers_did_is_in_the_log() -> None:
    file = io.StringIO()
    log = EventLog(file, clock=lambda: 0.0)
    log.emit(WorkerSpans(spans=(Span(worker="engine 0", kind="generate", start=1.5, end=2.0),)))
    line = json.loads(file.getvalue())
    assert line["spans"] == [{"worker": "engine 0", "kind": "generate", "start": 1.5, "end": 2.0}]


def test_what_is_read_back_is_what_happened(tmp_path: Path) -> None:
    world, text = logged_run()
    path = tmp_path / "events.jsonl"
    path.write_text(text)
    found = list(read(path))
    assert [logged.event for logged in found] == [event for _, event in world.events]
    assert [logged.time for logged in found] == pytest.approx([time for time, _ in world.events], abs=1e-6)


def test_spans_counts_and_numbers_that_are_not_finite_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    spans = WorkerSpans(spans=(Span(worker="engine 0", kind="generate", start=1.5, end=2.0),))
    skipped = UpdateSkipped(step=1, update=2, not_finite={"loss": 3}, in_a_row=1, path="there")
    trained = StepTrained(step=1, seconds=2.0, statistics={"kl": float("nan"), "loss": 0.5})
    write_events(path, [(0.0, spans), (1.0, skipped), (2.0, trained)])
    first, second, third = read(path)
    assert (first, second) == (Logged(0.0, spans), Logged(1.0, skipped))
    assert isinstance(third.event, StepTrained)
    assert math.isnan(third.event.statistics["kl"]) and third.event.statistics["loss"] == 0.5


def test_every_event_can_be_read() -> None:
    assert {kind.__name__ for kind in KINDS.values()} == FIELDS.keys()
    for name, kind in KINDS.items():
        assert event_log.FIELDS[name].keys() == FIELDS[kind.__name__]


GOOD = '{"time":0.5,"event":"checkpointed","step":3,"path":"there","seconds":0.5}\n'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"time":0.5,"event":"check', "JSONDecodeError"),
        ("", "JSONDecodeError"),
        ("[1, 2]", "no mapping"),
        ('"checkpointed"', "no mapping"),
        (GOOD.strip().replace("checkpointed", "teleported"), "teleported"),
        (GOOD.strip().replace('"path":"there",', ""), "path"),
        (GOOD.strip().replace('"step":3', '"step":3,"mood":1'), "mood"),
        (GOOD.strip().replace('"step":3', '"step":"3"'), "'3' is no int"),
        (GOOD.strip().replace('"step":3', '"step":true'), "True is no int"),
        (GOOD.strip().replace('"time":0.5,', ""), "time"),
        ('{"time":0.5,"event":"step_done","step":1,"laps":[]}', "no mapping"),
        ('{"time":0.5,"event":"worker_spans","spans":[{"worker":"engine 0"}]}', "kind"),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(GOOD + line + "\n" + GOOD)
    reader = read(path)
    assert next(reader).event == Checkpointed(step=3, path="there", seconds=0.5)
    with pytest.raises(EventLogError, match=r"events\.jsonl, line 2: ") as caught:
        next(reader)
    assert why in str(caught.value)


def test_a_last_line_without_an_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(GOOD + GOOD[:20])
    assert [logged.time for logged in read(path)] == [0.5]
    path.write_text("")
    assert list(read(path)) == []
