"""The comparison's figures, from an event log and numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from event_files import batch_taken, evaluated, group_judged, run_started, write_events

from dapo_openrlhf.bench.arm import WARM_UP_STEPS, ArmError, Measurement
from dapo_openrlhf.bench.comparison import table, verdicts
from dapo_openrlhf.bench.pipeline_arm import read_run
from dapo_openrlhf.bench.result import summarise
from dapo_openrlhf.pipeline.events import Event, PublicationLive, StepDone, WorkerSpans
from dapo_openrlhf.types import PolicyVersion, Span

UNIX = 1000.0
"""Unix time at 0 on the log's clock."""


def _span(worker: str, start: float, end: float) -> Span:
    return Span(worker=worker, kind="work", start=UNIX + start, end=UNIX + end)


def _log(folder: Path) -> Path:
    """Warm-up steps that end at 1, 2 and 3 s, then two counted ones that end at 5 and 9 s."""
    ends = [*range(1, WARM_UP_STEPS + 1), 5.0, 9.0]
    spans = (
        _span("engine 0", 2.5, 4.5),  # 1.5 s of the first counted step
        _span("engine 0", 6.0, 7.0),  # 1 s of the second
        _span("trainer 0", 3.0, 4.0),  # 1 s of the first
        _span("trainer 0", 5.0, 11.0),  # 4 s of the second
    )
    events: list[tuple[float, Event]] = [(0.0, run_started(UNIX))]
    for step, end in enumerate(ends):
        events += [
            (end - 0.5, batch_taken(step, ages=(0, 1), response_tokens=300 + step)),
            (end - 0.4, group_judged(keep=step % 2 == 0)),
            (end - 0.1, PublicationLive(version=PolicyVersion(step + 1), seconds=0.25, bytes=1, checksum=1)),
            (end, StepDone(step=step, laps={})),
        ]
    events.append((12.0, WorkerSpans(spans=spans)))
    write_events(folder / "events.jsonl", events)
    return folder / "events.jsonl"


def test_a_run_is_read_from_its_events_without_the_warm_up(tmp_path: Path) -> None:
    run = read_run(_log(tmp_path))
    assert run.step_seconds == (2.0, 4.0)
    assert run.trained_tokens == 303 + 304
    assert run.generate_seconds == pytest.approx((1.5 + 1.0) / 2)
    assert run.train_seconds == pytest.approx((1.0 + 4.0) / 2)
    assert run.busier_seconds == pytest.approx((1.5 + 4.0) / 2), (
        "the engine in the first step, the trainer in the second"
    )
    assert (run.mean_age, run.max_age, run.publish_seconds, run.pass_rate) == (0.5, 1, 0.25, 0.5)


def test_several_engines_and_ranks_count_in_the_mean_and_the_last_evaluation_is_the_accuracy(tmp_path: Path) -> None:
    file = _log(tmp_path)
    lines = file.read_text().splitlines()
    begun = run_started(UNIX)
    write_events(tmp_path / "more.jsonl", [(0.0, replace(begun, engines=2, trainer_ranks=4))])
    more = (tmp_path / "more.jsonl").read_text().splitlines()
    file.write_text("\n".join([*more, *lines[1:]]) + "\n")
    spans = (_span("engine 1", 3.0, 5.0), _span("trainer 3", 5.0, 9.0))
    write_events(file, [(13.0, evaluated(0, 0.2)), (14.0, WorkerSpans(spans=spans)), (15.0, evaluated(5, 0.7))])
    run = read_run(file)
    assert run.generate_seconds == pytest.approx((1.5 + 2.0 + 1.0) / 2 / 2)
    assert run.train_seconds == pytest.approx((1.0 + 4.0 + 4.0) / 4 / 2)
    assert run.accuracy == 0.7


def test_a_run_with_too_few_steps_is_an_error(tmp_path: Path) -> None:
    write_events(tmp_path / "events.jsonl", [(0.0, run_started(UNIX)), (1.0, StepDone(step=0, laps={}))])
    with pytest.raises(ArmError, match="has 0 steps after the warm-up; two or more are needed"):
        read_run(tmp_path / "events.jsonl")


def _run(*, seconds: float, generate: float, train: float, busier: float, publish: float = 0.05) -> Measurement:
    return Measurement(
        step_seconds=(seconds, seconds),
        trained_tokens=1000.0,
        generate_seconds=generate,
        train_seconds=train,
        busier_seconds=busier,
        publish_seconds=publish,
        mean_age=1.0,
        max_age=1,
        pass_rate=0.4,
    )


def test_verdicts_say_what_the_figures_say() -> None:
    k1 = summarise("this project, K = 1", [_run(seconds=2.2, generate=2.0, train=1.0, busier=2.1)])
    k0 = summarise("this project, K = 0", [_run(seconds=3.3, generate=2.0, train=1.0, busier=2.1)])
    stock = summarise("stock", [_run(seconds=4.4, generate=4.0, train=2.0, busier=4.0, publish=0.5)])
    said = verdicts({"k1": k1, "k0": k0, "stock-async": stock})
    assert said == [
        "K = 1 trains 2.00 x the tokens per second of stock",
        "one publication takes 10.0% of stock's broadcast",
        "K = 1 against K = 0: 1.50 x",
        "a K = 1 step takes 10.0% longer than max(generate, train), and 4.8% longer than whichever took longer in each "
        "step: the difference is that batches differ",
        "generating is the longer side, 2.00 s against 1.00 s a step",
    ]
    assert (k1.engine_idle, k1.trainer_idle) == (pytest.approx(1 - 2.0 / 2.2), pytest.approx(1 - 1.0 / 2.2))
    assert table([k1, stock]).splitlines()[1].split()[:6] == ["this", "project,", "K", "=", "1", "227"], (
        "1,000 tokens in 4.4 s"
    )


def test_one_sided_work_is_named() -> None:
    k1 = summarise("K = 1", [_run(seconds=4.0, generate=3.8, train=0.4, busier=3.8)])
    assert "asynchrony helps little here: generating alone takes 95% of a step" in verdicts({"k1": k1})
