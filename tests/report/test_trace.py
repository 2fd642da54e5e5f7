"""The timeline of a run, from its event log."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from event_files import write_events

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.pipeline.event_log import Logged
from dapo_openrlhf.pipeline.events import (
    Event,
    GroupDispatched,
    GroupFailed,
    GroupJudged,
    PublicationLive,
    Rewound,
    RunStarted,
    StepDone,
    WorkerSpans,
)
from dapo_openrlhf.report.trace import chrome_trace, draw_timeline, last_steps, read_log
from dapo_openrlhf.types import PolicyVersion, Span

UNIX = 1000.0


def _dispatched(group: int) -> GroupDispatched:
    return GroupDispatched(group=group, prompt=0, version=PolicyVersion(0), deadline=1)


def _judged(group: int, *, keep: bool) -> GroupJudged:
    reason = "kept" if keep else "all_right"
    return GroupJudged(group=group, keep=keep, reason=reason, accuracy=0.5, reward=0.0, response_tokens=1, seconds=0.0)


TIMELINE: list[tuple[float, Event]] = [
    (
        0.0,
        RunStarted(unix_time=UNIX, engines=1, trainer_ranks=1, devices=2, max_staleness=1, batch_size=1, first_step=0),
    ),
    (1.0, _dispatched(0)),
    (1.5, _dispatched(1)),
    (2.0, _judged(0, keep=True)),
    (2.5, GroupFailed(group=1, reason="engine_died", message="")),
    (3.0, StepDone(step=0, laps={})),
    (
        4.0,
        WorkerSpans(
            spans=(
                Span(worker="engine 0", kind="generate", start=UNIX + 1.0, end=UNIX + 3.5),
                Span(worker="trainer 0", kind="update", start=UNIX + 3.2, end=UNIX + 3.9),
            )
        ),
    ),
    (4.0, PublicationLive(version=PolicyVersion(1), seconds=0.25, bytes=1, checksum=1)),
    (4.5, StepDone(step=1, laps={})),
]


LOG = [Logged(time, event) for time, event in TIMELINE]


def _events(phase: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json.dumps(chrome_trace(LOG)))["traceEvents"]
    return [event for event in found if event["ph"] == phase]


def test_every_worker_has_a_track_with_its_work() -> None:
    tracks = {event["args"]["name"]: event["tid"] for event in _events("M")}
    assert tracks.keys() == {"engine 0", "trainer 0", "publication"}
    work = {event["name"]: event for event in _events("X")}
    assert (work["generate"]["tid"], work["generate"]["ts"], work["generate"]["dur"]) == (
        tracks["engine 0"],
        1e6,
        2.5e6,
    )
    assert work["update"]["tid"] == tracks["trainer 0"]
    assert work["update"]["dur"] == pytest.approx(0.7e6)
    assert (work["version 1"]["ts"], work["version 1"]["dur"]) == (3.75e6, 0.25e6)


def test_every_group_begins_and_ends() -> None:
    began, ended = Counter(e["id"] for e in _events("b")), Counter(e["id"] for e in _events("e"))
    assert began == ended == {0: 1, 1: 1}


def test_groups_are_counted_where_they_are() -> None:
    counts = [(event["args"]["in flight"], event["args"]["ready"]) for event in _events("C")]
    assert counts == [(1, 0), (2, 0), (1, 1), (0, 1)]


def test_groups_end_where_the_run_goes_back_to_a_checkpoint() -> None:
    """One is in flight then, and one ready."""
    lost = Rewound(from_step=1, to_step=0, restart=1, max_restarts=3, pause=2.0, message="")
    third, fourth = (
        GroupDispatched(group=group, prompt=group, version=PolicyVersion(0), deadline=1) for group in (2, 3)
    )
    log = [*LOG, Logged(6.0, third), Logged(6.5, lost), Logged(7.0, fourth)]
    events = chrome_trace(log)["traceEvents"]
    began = [(event["ph"], event["id"], event["ts"]) for event in events if event["ph"] in "be"][-3:]
    assert began == [("b", 2, 6e6), ("e", 2, 6.5e6), ("b", 3, 7e6)]
    counts = [(event["args"]["in flight"], event["args"]["ready"]) for event in events if event["ph"] == "C"]
    assert counts[-3:] == [(1, 1), (0, 0), (1, 0)]


def test_a_log_is_read_from_its_last_start_on_and_may_be_half_written(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    write_events(file, TIMELINE)
    file.write_text(2 * file.read_text() + '{"time":5.1,"ev')
    assert read_log(file) == LOG


def test_a_picture_of_a_step(tmp_path: Path) -> None:
    draw_timeline(LOG, tmp_path / "step.png", first_step=1, last_step=1)
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="5 to 6 are not steps of the log, which has steps 0 to 1"):
        draw_timeline(LOG, tmp_path / "none.png", first_step=5, last_step=6)
    with pytest.raises(ValueError, match="no step that was done"):
        draw_timeline(LOG[:3], tmp_path / "none.png", first_step=0, last_step=0)


@pytest.mark.parametrize(
    ("first", "count", "drawn"),
    [(0, 1, (0, 0)), (0, 2, (0, 1)), (0, 12, (9, 11)), (0, 13, (10, 12)), (20, 5, (22, 24))],
)
def test_without_steps_some_that_are_there_are_drawn(first: int, count: int, drawn: tuple[int, int]) -> None:
    log = [Logged(float(step), StepDone(step=step, laps={})) for step in range(first, first + count)]
    assert last_steps(log) == drawn


def test_the_command_draws_short_runs_and_names_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(tmp_path / "steps.png")
    write_events(tmp_path / "events.jsonl", TIMELINE)
    assert main(["trace", str(tmp_path), "--picture", picture]) == 0
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    for steps, words in {"x": "give FIRST:LAST", "1:0": "are not steps", "-1": "give FIRST:LAST", "0:": ""}.items():
        assert main(["trace", str(tmp_path), "--picture", picture, f"--steps={steps}"]) == (2 if words else 0)
        assert words in capsys.readouterr().err
    write_events(tmp_path / "events.jsonl", TIMELINE[:2])  # resumed, and nothing done since
    assert main(["trace", str(tmp_path), "--picture", picture]) == 2
    assert "no step of" in capsys.readouterr().err
    (tmp_path / "events.jsonl").write_text("")
    assert main(["trace", str(tmp_path)]) == 2
    assert "no run begins in it" in capsys.readouterr().err
