"""Rows of numbers, from events and from nothing else."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from fakes import FakeEngine, FakeScorer, World, build, filtered

from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Evaluated,
    Event,
    GroupCut,
    GroupDispatched,
    GroupFailed,
    GroupGenerated,
    GroupJudged,
    GroupSurplus,
    PublicationLive,
    StepDone,
    StepTrained,
    WorkerSpans,
)
from dapo_openrlhf.pipeline.metrics import METRICS, Row, StepMetrics, Unit
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion, Prompt, Span


def judged(group: int, reason: str, accuracy: float, tokens: int) -> GroupJudged:
    return GroupJudged(
        group=group,
        keep=reason == "kept",
        reason=reason,
        accuracy=accuracy,
        reward=0.0,
        response_tokens=tokens,
        seconds=0.1,
    )


def generated(group: int, tokens: int) -> GroupGenerated:
    return GroupGenerated(
        group=group,
        engine=0,
        seconds=1.0,
        response_tokens=tokens,
        responses=2,
        truncated=0,
        oldest_version=PolicyVersion(0),
        newest_version=PolicyVersion(0),
    )


TAKEN = BatchTaken(
    step=0,
    version=PolicyVersion(1),
    groups=(0, 3),
    ages=(1, 0),
    waited=4.0,
    reward=-0.25,
    accuracy=0.375,
    responses=8,
    response_tokens=1200,
    longest_response=400,
    truncated=2,
    in_flight=3,
    ready=1,
    over_sampled=2,
    cut=2,
    cut_tokens=240,
    free_slots=0,
    training_slots=4,
    token_ages=(900, 240, 60),
)

SPANS = (
    Span(worker="engine 0", kind="generate", start=1000.0, end=1006.0),
    Span(worker="engine 0", kind="load_weights", start=1009.0, end=1010.0),
    Span(worker="engine 1", kind="generate", start=1000.0, end=1007.0),
    Span(worker="engine 1", kind="load_weights", start=1007.0, end=1010.0),
    Span(worker="trainer 0", kind="update", start=1000.0, end=1001.0),
    Span(worker="trainer 0", kind="update", start=1003.0, end=1004.0),
)

STEP: list[Event] = [
    generated(0, 700),
    generated(1, 300),
    generated(2, 200),
    generated(3, 500),
    generated(4, 100),
    judged(0, "kept", 0.5, 700),
    judged(1, "all_right", 1.0, 300),
    judged(2, "all_wrong", 0.0, 200),
    GroupFailed(group=4, reason="reward_timeout", message="late"),
    judged(3, "kept", 0.25, 500),
    TAKEN,
    GroupCut(group=3),
    GroupSurplus(group=5, response_tokens=250),
    StepTrained(step=0, seconds=6.0, statistics={"loss": 0.125, "grad_norm": 2.0}),
    WorkerSpans(spans=SPANS),
    PublicationLive(version=PolicyVersion(2), seconds=1.5, bytes=10, checksum=1),
    StepDone(step=0, laps={"wait_batch": 4.0, "train": 6.0}),
    Evaluated(step=1, version=PolicyVersion(2), accuracy=0.75, problems=4, responses=8, seconds=3.0),
]


def test_a_row_in_numbers() -> None:
    """A step of 10 s: 5 groups generated, one of them fails in scoring, 2 of the 4 judged are kept."""
    metrics = StepMetrics(started=100.0, devices=3)
    for event in STEP:
        metrics.add(event)
    assert metrics.row(now=110.0) == {
        "policy_age/0": 1.0,
        "policy_age/1": 1.0,
        "queue/in_flight": 3,
        "queue/ready": 1,
        "queue/training": 4,
        "queue/free": 0,
        "tokens_per_device_second/generated": 60.0,
        "tokens_per_device_second/kept": 40.0,
        "tokens_per_device_second/trained": 40.0,
        "idle_share/engines": pytest.approx(1 - 17 / 20),  # 6 + 1 and 7 + 3 busy seconds of 10 each
        "idle_share/trainer": pytest.approx(1 - 2 / 4),
        "idle_seconds/engines": pytest.approx(1.5),
        "idle_seconds/trainer": pytest.approx(2.0),
        "seconds/engines_paused": 2.0,
        "seconds/wait_live": 0.0,
        "seconds/send": 0.0,
        "seconds/evaluate": 0.0,
        "seconds/save": 0.0,
        "reward": -0.25,
        "accuracy": (0.5 + 1.0 + 0.0 + 0.25) / 4,
        "batch_accuracy": 0.375,
        "groups/kept": 2.0,
        "groups/all_right": 1.0,
        "groups/all_wrong": 1.0,
        "groups/failed": 1.0,
        "prompts/dropped": 0.0,
        "groups/surplus": 1.0,
        "groups/cut": 1.0,
        "cut_share": 0.25,
        "cut_length_ratio": 0.75,
        "queue/over_sampled": 2,
        "tokens_per_second/surplus": 25.0,
        "reward_errors": 0.2,  # 1 of 4 judged and 1 not
        "pass_rate": 0.5,
        "policy_age/mean": 0.5,
        "policy_age/max": 1,
        "policy_age/token_mean": pytest.approx(0.3),  # (240 + 2 * 60) / 1200
        "stale_token_share": pytest.approx(0.25),
        "response_length/mean": 150.0,
        "response_length/max": 400,
        "truncated_share": 0.25,
        "tokens_per_second/generated": 180.0,
        "tokens_per_second/kept": 120.0,
        "tokens_per_second/trained": 120.0,
        "seconds/step": 10.0,
        "seconds/wait_batch": 4.0,
        "seconds/train": 6.0,
        "seconds/publish": 1.5,
        "eval/accuracy": 0.75,
        "loss": 0.125,
        "grad_norm": 2.0,
    }


def test_a_row_starts_from_nothing() -> None:
    metrics = StepMetrics(started=0.0)
    for event in STEP:
        metrics.add(event)
    metrics.row(now=10.0)
    metrics.add(judged(5, "all_wrong", 0.0, 50))
    row = metrics.row(now=12.5)
    assert row["seconds/step"] == 2.5
    assert (row["groups/kept"], row["groups/all_wrong"], row["groups/failed"]) == (0.0, 1.0, 0.0)
    assert (row["accuracy"], row["pass_rate"], row["tokens_per_second/generated"]) == (0.0, 0.0, 0.0)
    assert "eval/accuracy" not in row
    assert "loss" not in row


def test_idle_time_counts_from_the_last_report() -> None:
    """Ten seconds after its first report the trainer has worked for four more: six idle."""
    metrics = StepMetrics(started=0.0)
    metrics.add(WorkerSpans(spans=SPANS))
    metrics.row(now=1.0)
    metrics.add(WorkerSpans(spans=(Span(worker="trainer 0", kind="update", start=1010.0, end=1014.0),)))
    row = metrics.row(now=2.0)
    assert row["idle_share/trainer"] == pytest.approx(0.6)
    assert row["idle_seconds/trainer"] == pytest.approx(6.0)
    assert "idle_share/engines" not in row


def test_work_and_idle_time_of_all_steps_are_the_time_that_passed() -> None:
    chance = random.Random(4)
    metrics = StepMetrics(started=0.0)
    begun = {"trainer 0": 100.0, "trainer 1": 103.0}
    free = dict(begun)
    spans: list[Span] = []
    idle = 0.0
    for _ in range(20):
        done = []
        for worker in begun:
            for _ in range(chance.randrange(1, 4)):
                done.append(Span(worker=worker, kind="update", start=free[worker], end=free[worker] + chance.random()))
                free[worker] = done[-1].end + chance.random()
        metrics.add(WorkerSpans(spans=tuple(done)))
        idle += 2 * metrics.row(now=0.0)["idle_seconds/trainer"]
        spans += done
    passed = sum(max(span.end for span in spans if span.worker == worker) - begun[worker] for worker in begun)
    assert idle > 5.0
    assert sum(span.seconds for span in spans) + idle == pytest.approx(passed)


def test_failed_groups_are_not_judged() -> None:
    metrics = StepMetrics(started=0.0)
    metrics.add(judged(0, "kept", 0.5, 10))
    for group in range(1, 4):
        metrics.add(GroupFailed(group=group, reason="engine_error", message="broken"))
    row = metrics.row(now=1.0)
    assert (row["pass_rate"], row["accuracy"], row["groups/failed"]) == (1.0, 0.5, 3.0)


def test_groups_that_are_never_judged_are_forgotten() -> None:
    """Else what is remembered of each would grow with the run; shown by ids that come again, as they never do in one."""
    metrics = StepMetrics(started=0.0)
    for group in (1, 2):
        metrics.add(GroupDispatched(group=group, prompt=0, version=PolicyVersion(0), deadline=1, reason="again"))
    metrics.add(GroupFailed(group=1, reason="engine_error", message="broken"))
    metrics.add(GroupSurplus(group=2, response_tokens=0))
    assert metrics.row(now=1.0)["prompts/again"] == 2.0
    for group in (1, 2):
        metrics.add(judged(group, "kept", 0.5, 10))
    assert "pass_rate/again" not in metrics.row(now=2.0)


def test_a_step_of_no_length_and_without_groups_has_a_row() -> None:
    """With nothing judged there is no accuracy: 0 would be a wrong one."""
    row = StepMetrics(started=1.0).row(now=1.0)
    assert row["tokens_per_second/trained"] == 0.0
    assert "accuracy" not in row
    assert "pass_rate" not in row


def measured_run() -> tuple[World, list[Row], list[float]]:
    """A run with its rows, and the times at which its steps ended."""
    rows: list[Row] = []
    ends: list[float] = []

    async def main() -> World:
        chance = random.Random(2)

        def step_done(step: int) -> None:
            ends.append(world.log.now())
            rows.append(metrics.row(now=ends[-1]))

        def fault(prompt: Prompt) -> GroupError | None:
            breaks = prompt.id < 1000 and chance.random() < 0.1
            return GroupError("engine_error", "broken") if breaks else None

        world = build(
            batch_size=4,
            steps=8,
            engines=[
                FakeEngine(
                    index,
                    latency=lambda: chance.lognormvariate(1.0, 1.0),
                    fault=fault,
                )
                for index in range(2)
            ],
            scorer=FakeScorer(pattern=filtered(0.5, seed=2), latency=lambda: chance.random()),
            train_seconds=lambda: chance.uniform(1.0, 5.0),
            deliver_seconds=lambda: 1.0,
            problem_count=2,
            eval_steps=3,
            on_step=step_done,
        )
        metrics = StepMetrics(started=world.log.now())
        world.log.listen(metrics.add)
        await world.run()
        return world

    return run_virtual(main()), rows, ends


def test_rows_add_up_to_the_run() -> None:
    world, rows, ends = measured_run()
    assert len(rows) == 8
    assert [row["seconds/step"] for row in rows] == pytest.approx(
        [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
    )

    def over_run(name: str) -> float:
        return sum(row[name] * row["seconds/step"] for row in rows)

    laps = ("wait_batch", "train", "wait_live", "send", "evaluate", "save")
    for row in rows:
        assert sum(row[f"seconds/{lap}"] for lap in laps) == pytest.approx(row["seconds/step"])
        slots = sum(row[f"queue/{place}"] for place in ("in_flight", "ready", "training", "free"))
        assert slots == 8  # (K + 1) * P
        assert sum(count for name, count in row.items() if name in ("policy_age/0", "policy_age/1")) == 4
    # The very last instant may hold events after the last step's row: they belong to no row.
    trained = [group for batch in world.trainer.batches for group in batch.groups]
    assert over_run("tokens_per_second/trained") == pytest.approx(sum(sum(g.lengths) for g in trained))
    in_rows = world.events[: last_row_index(world)]
    made = [event for _, event in in_rows if isinstance(event, GroupGenerated)]
    assert over_run("tokens_per_second/generated") == pytest.approx(sum(e.response_tokens for e in made))
    verdicts = [event for _, event in in_rows if isinstance(event, GroupJudged)]
    kept = [event for event in verdicts if event.keep]
    assert over_run("tokens_per_second/kept") == pytest.approx(sum(e.response_tokens for e in kept))
    assert sum(row["groups/kept"] for row in rows) == len(kept)
    dropped = sum(row["groups/all_right"] + row["groups/all_wrong"] for row in rows)
    assert dropped == len(verdicts) - len(kept) > 0
    failed = sum(row["groups/failed"] for row in rows)
    assert failed == sum(isinstance(event, GroupFailed) for _, event in in_rows) > 0
    some = [row for row in rows if judged_in(row)]
    assert 0 < len(some) < len(rows), "the run should have a step in which no group was judged"
    right = sum(row["accuracy"] * judged_in(row) for row in some)
    assert right == pytest.approx(sum(event.accuracy for event in verdicts))
    for row in some:
        assert row["pass_rate"] == pytest.approx(row["groups/kept"] / judged_in(row))


def judged_in(row: Row) -> float:
    return row["groups/kept"] + row["groups/all_right"] + row["groups/all_wrong"]


def last_row_index(world: World) -> int:
    """How many events had happened when the last row was made: all up to the last training."""
    return max(index for index, (_, event) in enumerate(world.events) if isinstance(event, StepTrained)) + 1


def test_rows_tell_ages_and_times_as_the_fakes_saw_them() -> None:
    world, rows, _ = measured_run()
    for row, batch in zip(rows, world.trainer.batches, strict=True):
        assert row["policy_age/max"] == max(batch.ages)
        assert row["policy_age/mean"] == pytest.approx(sum(batch.ages) / 4)
        tokens = [
            (batch.version - group.oldest_version - newer, count)
            for group in batch.groups
            for newer, count in enumerate(group.version_tokens)
        ]
        number = sum(count for _, count in tokens)
        assert row["policy_age/token_mean"] == pytest.approx(sum(age * count for age, count in tokens) / number)
        assert row["policy_age/token_mean"] <= row["policy_age/max"]
        assert row["stale_token_share"] == pytest.approx(sum(count for age, count in tokens if age > 0) / number)
        assert row["seconds/train"] == pytest.approx(batch.ended - batch.began)
        lengths = [length for group in batch.groups for length in group.lengths]
        assert row["response_length/max"] == max(lengths)
        assert row["response_length/mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert 0 < sum(row["stale_token_share"] for row in rows) < len(rows)
    batches = world.trainer.batches
    for row, before, batch in zip(rows[1:], batches[:-1], batches[1:], strict=True):
        assert row["seconds/wait_batch"] <= batch.began - before.ended + 1e-9
    # Measured after 0, 3 and 6 steps, beside the training of the next one.
    assert ["eval/accuracy" in row for row in rows] == [step in (0, 3, 6) for step in range(8)]


def test_every_name_in_a_row_is_explained() -> None:
    _, rows, _ = measured_run()
    ages = {f"policy_age/{age}" for age in range(2)}
    assert {name for row in rows for name in row} <= METRICS.keys() | ages
    metrics = StepMetrics(started=0.0)
    for event in STEP:
        metrics.add(event)
    assert metrics.row(now=1.0).keys() <= METRICS.keys() | ages


def test_every_metric_has_a_unit_and_a_meaning() -> None:
    assert {metric.unit for metric in METRICS.values()} == set(get_args(Unit))
    assert [name for name, metric in METRICS.items() if not metric.meaning] == []
    ends = {"seconds": "seconds/", "versions": "policy_age/", "tokens per second": "tokens_per_second/"}
    for unit, begin in ends.items():
        assert {metric.unit for name, metric in METRICS.items() if name.startswith(begin)} == {unit}
