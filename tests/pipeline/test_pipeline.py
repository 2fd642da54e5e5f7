"""Both loops whole, in virtual time."""

from __future__ import annotations

import asyncio
import io
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from fakes import (
    HANG,
    FakeEngine,
    FakeGroup,
    FakeScorer,
    World,
    all_right,
    all_wrong,
    build,
    by_difficulty,
    check_prompts,
    fates,
    filtered,
    mixed,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapo_openrlhf.pipeline.agreement import PoliciesDiffer
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch
from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.dynamic_sampling import MOST_OVER_SAMPLING
from dapo_openrlhf.pipeline.evaluator import EvaluationFailed
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Checkpointed,
    Evaluated,
    GroupCut,
    GroupDispatched,
    GroupFailed,
    GroupJudged,
    PublicationLive,
)
from dapo_openrlhf.pipeline.mixture import Drawing
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.pipeline.prompts import NoPromptsLeft
from dapo_openrlhf.pipeline.rollout_queue import BatchStarvation
from dapo_openrlhf.pipeline.staleness import StalenessViolation
from dapo_openrlhf.pipeline.suspects import FAILS, KILLS_ENGINES
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import PolicyVersion, Prompt, TrainBatch

PERMANENT = "prompt_too_long"


def first_error(error: BaseException) -> BaseException:
    """The first error that is no group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def failing_run(expected: type[BaseException], make: Callable[[], World]) -> tuple[str, World]:
    """The words of the error a run ends with, and what it left behind."""

    async def main() -> tuple[BaseException, World, set[asyncio.Task[object]]]:
        world = make()
        try:
            await world.run()
        except Exception as error:
            return first_error(error), world, asyncio.all_tasks() - {asyncio.current_task()}
        raise AssertionError("the run ended without an error")

    error, world, left_over = run_virtual(main())
    assert isinstance(error, expected), error
    assert not left_over, f"tasks outlived the run: {left_over}"
    assert not any(engine.running for engine in world.engines), "engines generate for a run that is over"
    return str(error), world


def whole_run(make: Callable[[], World]) -> tuple[Outcome, World]:
    async def main() -> tuple[Outcome, World]:
        world = make()
        return await world.run(), world

    outcome, world = run_virtual(main())
    assert not any(engine.running for engine in world.engines), "engines generate for a run that is over"
    return outcome, world


# ---------------------------------------------------------------- any run keeps its promises

TAILS: dict[str, Callable[[random.Random], float]] = {
    "constant": lambda chance: 3.0,
    "uniform": lambda chance: chance.uniform(0.0, 6.0),
    "log-normal": lambda chance: chance.lognormvariate(0.6, 1.0),
    "heavy": lambda chance: min(chance.paretovariate(0.8), 400.0),
    "two kinds": lambda chance: 0.1 if chance.random() < 0.9 else 60.0,
    "at once": lambda chance: 0.0 if chance.random() < 0.5 else 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    batch_size: int
    max_staleness: int
    engines: int
    tail: str
    filter_rate: float
    failure_rate: float
    hang_rate: float
    score_failure_rate: float
    outage: bool
    train_seconds: float
    send_seconds: float
    deliver_seconds: float
    evaluation: int
    prompt_count: int
    curriculum: bool
    over_sampling: float | None
    cut_late: bool
    deaths: int
    resumed: tuple[int, int]
    """Max staleness and batch size with which the run goes on from its checkpoint."""
    seed: int

    @property
    def slots(self) -> int:
        return (self.max_staleness + 1) * self.batch_size

    @property
    def drawing(self) -> Drawing:
        return by_difficulty(self.prompt_count, batch_size=self.batch_size) if self.curriculum else Drawing()

    def build(self, steps: int, state: RunState | None = None) -> World:
        chance = random.Random(self.seed)
        tail = TAILS[self.tail]

        def fault(prompt: Prompt) -> GroupError | float | None:
            if prompt.id >= 1000:
                return None  # an evaluation in which nothing can be judged ends the run
            if chance.random() < self.hang_rate:
                return HANG
            if chance.random() < self.failure_rate:
                permanent = chance.random() < 0.3
                return GroupError(PERMANENT if permanent else "engine_error", "broken", permanent=permanent)
            return None

        def score_fault(group: FakeGroup) -> GroupError | None:
            return GroupError("reward_error", "no") if chance.random() < self.score_failure_rate else None

        def jitter(mean: float) -> Callable[[], float]:
            return lambda: mean * chance.uniform(0.5, 1.5)

        pattern = filtered(self.filter_rate, seed=self.seed)
        return build(
            batch_size=self.batch_size,
            max_staleness=self.max_staleness,
            steps=steps,
            engines=[
                FakeEngine(
                    index,
                    latency=lambda: tail(chance),
                    fault=fault,
                    outage=(20.0, 35.0) if self.outage and index == 0 and not self.evaluation else None,
                    seed=self.seed,
                )
                for index in range(self.engines)
            ],
            scorer=FakeScorer(
                latency=lambda: chance.uniform(0.0, 0.5),
                pattern=pattern,
                fault=lambda group: score_fault(group) if group.for_training else None,
            ),
            train_seconds=jitter(self.train_seconds),
            send_seconds=jitter(self.send_seconds),
            deliver_seconds=jitter(self.deliver_seconds),
            problem_count=self.evaluation,
            eval_steps=2 if self.evaluation else -1,
            max_filtered_batches=1000,
            prompt_count=self.prompt_count,
            drawing=self.drawing,
            over_sampling=self.over_sampling,
            cut_late=self.cut_late,
            revive_seconds=jitter(5.0) if self.deaths else None,
            save_steps=3,
            state=state,
            seed=self.seed,
        )

    async def kill_engines(self, world: World) -> None:
        """Now this one, now that one, at any moment of the run."""
        chance = random.Random(f"deaths/{self.seed}")
        for _ in range(self.deaths):
            await asyncio.sleep(chance.uniform(0.0, 15.0))
            chance.choice(world.engines).die()


scenarios = st.builds(
    Scenario,
    batch_size=st.integers(1, 8),
    max_staleness=st.integers(0, 4),
    engines=st.integers(1, 4),
    tail=st.sampled_from(sorted(TAILS)),
    filter_rate=st.sampled_from([0.0, 0.3, 0.6, 0.8]),
    failure_rate=st.sampled_from([0.0, 0.1, 0.3]),
    hang_rate=st.sampled_from([0.0, 0.0, 0.03]),
    score_failure_rate=st.sampled_from([0.0, 0.1]),
    outage=st.booleans(),
    train_seconds=st.sampled_from([0.0, 1.0, 20.0]),
    send_seconds=st.sampled_from([0.0, 0.3]),
    deliver_seconds=st.sampled_from([0.0, 1.0, 15.0]),
    evaluation=st.sampled_from([0, 0, 3]),
    prompt_count=st.sampled_from([3, 50, 999]),
    curriculum=st.booleans(),
    over_sampling=st.sampled_from([1.0, None, 1.5, 4.0]),
    cut_late=st.booleans(),
    deaths=st.sampled_from([0, 0, 3]),
    resumed=st.tuples(st.integers(0, 4), st.integers(1, 8)),
    seed=st.integers(0, 10_000),
)


@pytest.mark.long
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios)
def test_any_run_reaches_its_steps_within_the_contract(scenario: Scenario) -> None:
    """Fakes refuse whatever breaks a port's contract; the rest is judged by their records and the events."""
    steps = 6

    async def main(scenario: Scenario, state: RunState | None = None) -> tuple[Outcome, World] | None:
        world = scenario.build(steps, state)
        killer = asyncio.create_task(scenario.kill_engines(world))
        try:
            return await world.run(), world
        except* EvaluationFailed:
            assert scenario.deaths  # its engines died and died again
        except* NoPromptsLeft:
            assert scenario.prompt_count == 3 and scenario.failure_rate  # each failed three times in a row
        finally:
            killer.cancel()
        return None

    if (ran := run_virtual(main(scenario))) is None:
        return
    outcome, world = ran
    assert [state.step for state in world.checkpoints.states] == [3, 6]
    check_run(scenario, outcome, world, steps=steps)

    state = world.checkpoints.states[0]
    resumed = replace(scenario, max_staleness=scenario.resumed[0], batch_size=scenario.resumed[1])
    if (ran := run_virtual(main(resumed, state))) is not None:
        check_run(resumed, *ran, steps=steps - state.step, state=state)


def check_run(scenario: Scenario, outcome: Outcome, world: World, *, steps: int, state: RunState | None = None) -> None:
    """``steps``: rollout steps of this run, after those of ``state``."""
    assert not any(engine.running for engine in world.engines), "engines generate for a run that is over"
    start = state.step if state else 0
    batches = world.trainer.batches
    assert len(batches) == len(world.publisher.delivered) == steps
    assert outcome.steps == steps
    assert {engine.version for engine in world.engines if engine.alive} <= {start + steps}
    ages = [age for batch in batches for age in batch.ages]
    assert max(ages) <= scenario.max_staleness
    assert outcome.max_policy_age == max(ages)
    if scenario.max_staleness == 0 and scenario.over_sampling == 1.0:
        assert all(batch.generating == 0 for batch in batches), "generation and training share slots"

    most = MOST_OVER_SAMPLING if scenario.over_sampling is None else scenario.over_sampling
    fate = fates(world, batch_size=scenario.batch_size, slots=int(most * scenario.slots))
    if scenario.over_sampling == 1.0:
        assert "surplus" not in fate.values()
    if not scenario.cut_late:
        assert world.of(GroupCut) == []
    if not (scenario.curriculum and scenario.cut_late):  # what is cut is not learned, and no event tells it
        check_prompts(
            world,
            permanent=lambda reason: reason in (PERMANENT, FAILS, KILLS_ENGINES),
            prompt_count=scenario.prompt_count,
            seed=scenario.seed,
            state=state.prompts if state else None,
            drawing=scenario.drawing,
        )
    made = [group for engine in world.engines for group in engine.made if group.for_training]
    waited = sum(place in ("in flight", "surplus") for place in fate.values())  # for an engine, some of them
    asked = sum(group.for_training for engine in world.engines for group in engine.named.values())  # also of suspects
    assert len(made) <= len(fate) == outcome.counters["dispatched"] <= asked + waited
    answers = [group for engine in world.engines for group in engine.made if not group.for_training]
    wanted = scenario.evaluation * len(world.of(Evaluated))
    assert len(answers) >= wanted if scenario.deaths else len(answers) == wanted
    of_two = [group for group in answers if group.end == "made" and group.oldest_version != group.newest_version]
    assert not of_two, "an evaluation mixes versions"
    trained = sum(place == "trained" for place in fate.values())
    assert trained == outcome.counters["trained"] == steps * scenario.batch_size
    assert not any(place == "training" for place in fate.values())


# ---------------------------------------------------------------- order of events


def in_turn(first: list[float], rest: float) -> Callable[[], float]:
    """Latencies in order of dispatch."""
    left = iter(first)
    return lambda: next(left, rest)


def test_a_straggler_at_its_deadline_is_waited_for_while_later_groups_are_ready() -> None:
    """Group 0 takes 100 s. Batch 0 may do without it; batch 1 may not, and waits with three groups ready."""
    _, world = whole_run(lambda: build(steps=3, engines=[FakeEngine(latency=in_turn([100.0], 1.0))]))
    taken = [(at, event) for at, event in world.of(BatchTaken)]
    assert [event.groups for _, event in taken] == [(1, 2), (0, 3), (4, 5)]
    assert taken[0][0] == 1.0
    assert taken[1][0] == 100.0
    assert (taken[1][1].ages, taken[1][1].ready) == ((1, 1), 2)


def test_a_dropped_groups_slot_is_reused_at_once() -> None:
    chance = random.Random(1)
    _, world = whole_run(
        lambda: build(
            batch_size=3,
            engines=[FakeEngine(latency=lambda: chance.uniform(1, 9))],
            scorer=FakeScorer(pattern=filtered(0.5, seed=1)),
        )
    )
    dispatched = [at for at, _ in world.of(GroupDispatched)]
    dropped = [at for at, event in world.of(GroupJudged) if not event.keep]
    assert len(dropped) >= 5
    assert all(at in dispatched for at in dropped)


def test_a_failed_groups_slot_is_reused_at_once_and_by_the_same_prompt() -> None:
    faults = iter([None, GroupError("engine_error", "broken")])
    latency = in_turn([3.0, 3.5, 4.0], 5.0)
    engine = FakeEngine(latency=latency, fault=lambda prompt: next(faults, None))
    _, world = whole_run(lambda: build(engines=[engine]))
    ((failed_at, failed),) = world.of(GroupFailed)
    assert (failed_at, failed.group) == (3.5, 1)
    dispatched = world.of(GroupDispatched)
    assert [(at, event.group) for at, event in dispatched if event.prompt == dispatched[1][1].prompt] == [
        (0.0, 1),
        (3.5, 4),
    ]


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_a_trained_groups_slot_is_reused_only_after_its_successor_weights_are_live(
    max_staleness: int,
) -> None:
    slots = (max_staleness + 1) * 2
    _, world = whole_run(
        lambda: build(
            steps=5,
            max_staleness=max_staleness,
            send_seconds=lambda: 0.5,
            deliver_seconds=lambda: 7.0,
        )
    )
    live = [0.0] + [at for at, _ in world.of(PublicationLive)]
    for at, event in world.of(GroupDispatched):
        version = 0 if event.group < slots else (event.group - slots) // 2 + 1
        assert at == live[version], f"group {event.group} was dispatched at {at}, not with version {version}"


def test_delivery_overlaps_the_next_training() -> None:
    _, world = whole_run(
        lambda: build(
            max_staleness=2, train_seconds=lambda: 10.0, send_seconds=lambda: 1.0, deliver_seconds=lambda: 6.0
        )
    )
    for (began, ended), batch in zip(world.publisher.delivered[:-1], world.trainer.batches[1:], strict=True):
        assert batch.began == began < ended < batch.ended


def test_a_step_trained_faster_than_weights_travel_waits_for_them_before_it_sends_its_own() -> None:
    _, world = whole_run(lambda: build(max_staleness=3, deliver_seconds=lambda: 20.0))
    for (_, ended), sent in zip(world.publisher.delivered[:-1], world.publisher.sent[1:], strict=True):
        assert sent >= ended


def test_without_staleness_generation_and_training_take_turns() -> None:
    chance = random.Random(2)
    _, world = whole_run(
        lambda: build(
            batch_size=4,
            max_staleness=0,
            engines=[FakeEngine(index, latency=lambda: chance.uniform(1, 9)) for index in range(2)],
            scorer=FakeScorer(pattern=filtered(0.3, seed=2)),
            deliver_seconds=lambda: 3.0,
        )
    )
    made = [group for engine in world.engines for group in engine.made]
    for batch in world.trainer.batches:
        assert batch.ages == (0,) * 4
        assert not any(group.started < batch.ended and group.ended > batch.began for group in made)


def test_the_initial_evaluation_ends_before_the_first_weights_are_sent() -> None:
    """It runs beside the first training, and every answer in it comes from the initial weights."""
    _, world = whole_run(
        lambda: build(
            problem_count=3, engines=[FakeEngine(latency=in_turn([50.0] * 3, 1.0))], train_seconds=lambda: 5.0
        )
    )
    measured, event = world.of(Evaluated)[0]
    assert (event.step, event.version, event.problems, event.responses) == (0, 0, 3, 6)
    answers = [group for group in world.engines[0].made if not group.for_training][:3]
    assert [(group.oldest_version, group.newest_version) for group in answers] == [(0, 0)] * 3
    assert world.trainer.batches[0].ended < measured == world.publisher.sent[0]


class SlowOnProblems(FakeEngine):
    """Takes half a minute longer for a problem of the evaluation."""

    async def _sample(self, group: FakeGroup, cut: asyncio.Event) -> None:
        await super()._sample(group, cut)
        if not group.for_training:
            await asyncio.sleep(30.0)
            group.newest_version = self.version


def test_an_evaluation_holds_up_the_next_publication_and_nothing_else() -> None:
    """Version 2 is live 2 s after it was sent; its evaluation takes 31 s, the training beside it 10 s."""
    measured: list[tuple[int, int]] = []
    _, world = whole_run(
        lambda: build(
            engines=[SlowOnProblems()],
            problem_count=3,
            eval_steps=2,
            train_seconds=lambda: 10.0,
            deliver_seconds=lambda: 2.0,
            on_evaluation=lambda step, evaluation: measured.append((step, len(evaluation.results))),
        )
    )
    live = {event.version: at for at, event in world.of(PublicationLive)}
    ended, event = world.of(Evaluated)[1]
    assert (event.step, event.version, event.seconds) == (2, 2, 31.0)
    assert ended == live[PolicyVersion(2)] + 31.0
    answers = [group for group in world.engines[0].made if not group.for_training][3:6]
    assert [(group.oldest_version, group.newest_version) for group in answers] == [(2, 2)] * 3
    beside = world.trainer.batches[2]
    assert beside.began == world.publisher.sent[1] and beside.ended == beside.began + 10.0 < ended
    assert world.publisher.sent[2] == ended
    dispatched = [at for at, _ in world.of(GroupDispatched)]
    assert any(live[PolicyVersion(2)] <= at < ended for at in dispatched), "rollouts stood still"
    assert measured == [(0, 3), (2, 3), (4, 3)]


def test_evaluations_and_checkpoints_come_when_asked_for_and_at_the_end() -> None:
    steps_done: list[int] = []
    outcome, world = whole_run(
        lambda: build(
            steps=5,
            problem_count=2,
            eval_steps=2,
            save_steps=3,
            deliver_seconds=lambda: 2.0,
            on_step=steps_done.append,
        )
    )
    evaluated = [event for _, event in world.of(Evaluated)]
    assert [(event.step, event.version) for event in evaluated] == [(step, step) for step in (0, 2, 4, 5)]
    answers = [group for group in world.engines[0].made if not group.for_training]
    assert [(group.oldest_version, group.newest_version) for group in answers] == [
        (version, version) for version in (0, 2, 4, 5) for _ in range(2)
    ]
    assert world.trainer.saved == [(3, "checkpoint-3"), (5, "checkpoint-5"), (5, "model")]
    assert [event.path for _, event in world.of(Checkpointed)] == ["checkpoint-3", "checkpoint-5", "model"]
    assert (outcome.accuracy_before, outcome.accuracy_after) == (0.5, 0.5)
    assert steps_done == [0, 1, 2, 3, 4]


def test_the_outcome_says_when_things_happened() -> None:
    outcome, world = whole_run(
        lambda: build(steps=3, max_staleness=0, train_seconds=lambda: 4.0, deliver_seconds=lambda: 2.0)
    )
    assert outcome.first_step_at == 5.0  # 1 s generation, 4 s training
    assert outcome.train_seconds == pytest.approx(3 * (1.0 + 4.0 + 2.0))
    assert outcome.steps == 3
    assert outcome.counters == world.queue.counters() | {"in_flight": 2}


def test_the_outcome_has_the_largest_age_wherever_in_a_batch_it_is() -> None:
    """Group 0 waits for its first token until version 1 is there; group 3 of the same batch does not."""
    outcome, world = whole_run(
        lambda: build(steps=2, engines=[FakeEngine(latency=in_turn([100.0], 0.1))], train_seconds=lambda: 0.1)
    )
    assert [batch.ages for batch in world.trainer.batches] == [(0, 0), (0, 1)]
    assert outcome.max_policy_age == 1


def test_groups_count_as_trained_when_they_are() -> None:
    seen: list[tuple[object, object]] = []

    def look(batch: TrainBatch) -> None:
        counters = worlds[0].queue.counters()
        seen.append((counters["training"], counters["trained"]))

    worlds: list[World] = []

    def make() -> World:
        worlds.append(build(steps=3, work=look))
        return worlds[0]

    whole_run(make)
    assert seen == [(2, 0), (2, 2), (2, 4)]


# ---------------------------------------------------------------- ends that say why


def test_groups_that_are_all_wrong_end_the_run_with_remedies() -> None:
    words, world = failing_run(
        BatchStarvation,
        lambda: build(batch_size=3, scorer=FakeScorer(pattern=all_wrong), max_filtered_batches=4),
    )
    assert "12 groups were dropped while one batch of 3 was filled" in words
    assert "0 all right, 12 all wrong" in words
    assert "too hard" in words
    assert "answer format" in words
    assert "easier prompts" in words
    assert "algo.max_filtered_batches" in words
    assert world.trainer.batches == []


def test_groups_that_are_all_right_end_the_run_with_remedies() -> None:
    words, _ = failing_run(
        BatchStarvation,
        lambda: build(batch_size=3, scorer=FakeScorer(pattern=all_right), max_filtered_batches=4),
    )
    assert "12 all right, 0 all wrong" in words
    assert "too easy" in words
    assert "harder prompts" in words
    assert "answer format" not in words


def test_groups_that_all_fail_end_the_run_with_the_reason() -> None:
    words, _ = failing_run(
        BatchStarvation,
        lambda: build(engines=[FakeEngine(fault=lambda prompt: GroupError("engine_error", "out of cache"))]),
    )
    assert "8 groups all failed" in words
    assert "{'engine_error': 8}" in words
    assert "group 7: out of cache" in words


def test_prompts_that_all_fail_for_good_end_the_run_with_the_reason() -> None:
    words, _ = failing_run(
        BatchStarvation,
        lambda: build(
            engines=[FakeEngine(fault=lambda p: GroupError(PERMANENT, f"prompt {p.id}", permanent=True))],
        ),
    )
    assert "prompt_too_long" in words


def test_rewards_that_all_fail_end_the_run_with_the_reason() -> None:
    words, _ = failing_run(
        BatchStarvation,
        lambda: build(scorer=FakeScorer(fault=lambda group: GroupError("reward_timeout", "too slow"))),
    )
    assert "{'reward_timeout': 8}" in words


def test_an_engine_that_fails_at_once_is_not_asked_for_ever_while_the_trainer_is_busy() -> None:
    """The first four groups are well; then calls fail within a millisecond; the training takes an hour."""
    asked: list[int] = []

    def fault(prompt: Prompt) -> GroupError | None:
        asked.append(prompt.id)
        return GroupError("engine_error", "engine 0 is broken") if len(asked) > 4 else None

    words, _ = failing_run(
        BatchStarvation,
        lambda: build(
            engines=[FakeEngine(latency=in_turn([1.0] * 4, 0.001), fault=fault)],
            train_seconds=lambda: 3600.0,
        ),
    )
    assert "engine 0 is broken" in words
    assert len(asked) <= 4 + 8 + 4  # well, failing until dispatch stops, in flight then


def test_an_outage_that_hits_every_group_in_flight_is_survived() -> None:
    outcome, world = whole_run(
        lambda: build(batch_size=4, steps=3, engines=[FakeEngine(latency=lambda: 10.0, outage=(5.0, 60.0))])
    )
    assert outcome.steps == 3
    assert outcome.counters["failed"] == {"engine_died": 8}
    check_prompts(world, permanent=lambda reason: False, prompt_count=1000, seed=0)


def test_engines_that_hang_end_the_run_naming_engine_and_groups() -> None:
    words, world = failing_run(
        BatchStarvation,
        lambda: build(engines=[FakeEngine(latency=lambda: HANG)], generate_timeout=60.0, stall_timeout=70.0),
    )
    assert "generate_timeout" in words
    assert "group 7: engine 0 did not finish prompt" in words
    assert "within 60 s" in words
    assert {group.end for group in world.engines[0].made} == {"cancelled"}


def test_one_engine_that_hangs_does_not_stop_the_other() -> None:
    outcome, world = whole_run(
        lambda: build(
            steps=3,
            engines=[FakeEngine(0), FakeEngine(1, latency=in_turn([HANG] * 2, 1.0))],
            generate_timeout=60.0,
            stall_timeout=70.0,
        )
    )
    assert outcome.counters["failed"] == {"generate_timeout": 2}
    messages = [event.message for _, event in world.of(GroupFailed)]
    assert all(message.startswith("engine 1 did not finish prompt") for message in messages)


def test_an_engine_that_always_fails_at_once_does_not_stop_a_healthy_one() -> None:
    """It has the fewest groups in flight at any time, and so draws many; but never without end."""
    broken = FakeEngine(0, latency=lambda: 0.001, fault=lambda prompt: GroupError("engine_error", "broken"))
    healthy = FakeEngine(1, latency=lambda: 10.0)
    outcome, _ = whole_run(lambda: build(batch_size=8, engines=[broken, healthy]))
    assert outcome.steps == 4
    assert len(broken.made) < 20 * len(healthy.made)


def test_a_stall_names_the_groups_in_flight() -> None:
    words, _ = failing_run(
        BatchStarvation,
        lambda: build(
            engines=[FakeEngine(latency=in_turn([1.0, HANG, HANG, HANG], 1.0))],
            generate_timeout=1e6,
            stall_timeout=99.0,
        ),
    )
    assert "step 0: no group has ended for 99 s" in words
    assert "1 of 2 groups ready" in words
    assert "groups [1, 2, 3]" in words


def test_a_stall_at_a_deadline_names_the_late_groups_only() -> None:
    """Group 0 hangs and is due at version 1. Batch 0 did without it; groups 3, 4 and 5 are ready in vain."""
    words, world = failing_run(
        BatchStarvation,
        lambda: build(
            engines=[FakeEngine(latency=in_turn([HANG, 1.0, 1.0, 1.0], 2.0))],
            generate_timeout=1e6,
            stall_timeout=99.0,
        ),
    )
    assert "step 1: no group has ended" in words
    assert "groups due by version 1 are still in flight" in words
    assert "groups [0]" in words
    assert len(world.trainer.batches) == 1


def test_a_stall_with_nothing_in_flight_names_the_version_that_slots_wait_for() -> None:
    words, _ = failing_run(
        BatchStarvation,
        lambda: build(max_staleness=0, deliver_seconds=lambda: 1e6, stall_timeout=99.0),
    )
    assert "step 1: no group has ended" in words
    assert "none is in flight, 2 slots wait for version 1" in words


def test_a_trainer_error_stops_the_rollouts_and_surfaces() -> None:
    words, world = failing_run(RuntimeError, lambda: build(train_fails_at=2))
    assert words == "trainer rank 0 ran out of memory in step 2"
    assert len(world.trainer.batches) == 2


def test_engines_that_are_another_policy_stop_the_run_before_more_updates() -> None:
    """From the second step on, K = 0: each batch is of the weights it trains."""
    words, world = failing_run(
        PoliciesDiffer,
        lambda: build(max_staleness=0, save_steps=1, fresh_kl=lambda batch: 1.1 if batch.step == 1 else 1e-6),
    )
    assert words.startswith("step 1: rollout_kl/age_0 is 1.1 nats a token, above train.max_rollout_kl 0.001")
    assert all(
        word in words for word in ("fp32", "ds.attn_implementation", "events.jsonl", "raise train.max_rollout_kl")
    )
    assert len(world.trainer.batches) == 2, "nothing is trained after it was seen"
    assert [version for version, _ in world.trainer.saved] == [1], (
        "what was saved before stays, and nothing is saved after"
    )
    assert world.queue.live_version == 1, "and nothing is published"


def test_engines_that_answer_nonsense_stop_the_run() -> None:
    words, _ = failing_run(PoliciesDiffer, lambda: build(max_staleness=0, fresh_kl=lambda batch: float("nan")))
    assert words.startswith("step 0: rollout_kl/age_0 is nan nats a token")


def test_staleness_does_not_look_like_another_policy() -> None:
    """The figure is of age 0 alone: a batch without such groups has none, whatever its other groups say."""
    seen = []

    def fresh_kl(batch: TrainBatch) -> float:
        seen.append(batch.ages)
        return 1e-6

    async def whole_run() -> World:
        world = build(max_staleness=2, steps=6, fresh_kl=fresh_kl, train_seconds=lambda: 500.0)
        await world.pipeline.run()
        return world

    world = run_virtual(whole_run())
    assert seen
    assert all(0 in ages for ages in seen)
    assert len(seen) < 6 == world.pipeline.outcome.steps, "some batches are older altogether"


@pytest.mark.parametrize("train_seconds", [1.0, 50.0])
def test_a_delivery_error_surfaces(train_seconds: float) -> None:
    words, world = failing_run(
        RuntimeError,
        lambda: build(deliver_fails_at=2, train_seconds=lambda: train_seconds, deliver_seconds=lambda: 5.0),
    )
    assert words == "engine 0 did not answer with version 2"
    assert world.queue.live_version == 1


def test_an_engine_with_weights_of_its_own_is_found_out_where_its_groups_are_consumed() -> None:
    def make() -> World:
        engine = FakeEngine()
        engine.version = 5
        return build(engines=[engine])

    words, world = failing_run(StalenessViolation, make)
    assert "policy age -5" in words
    assert world.trainer.batches == []


def test_an_error_in_the_rollout_loop_stops_the_trainer_and_surfaces() -> None:
    def broken(group: FakeGroup) -> tuple[bool, ...]:
        if group.started > 3:
            raise KeyError("a defect")
        return mixed(group)

    _, world = failing_run(
        KeyError,
        lambda: build(scorer=FakeScorer(pattern=broken), train_seconds=lambda: 1000.0),
    )
    assert len(world.trainer.batches) < 4
    assert max(at for at, _ in world.events) < 1e4


# ---------------------------------------------------------------- speed


def step_seconds(max_staleness: int) -> float:
    """The design's simulation: P = 16, training 8 s, a group's time log-normal, mean 10 s, at most 40 s."""

    def make() -> World:
        chance = random.Random(0)
        sigma = 0.75
        return build(
            batch_size=16,
            max_staleness=max_staleness,
            steps=25,
            engines=[
                FakeEngine(
                    latency=lambda: min(chance.lognormvariate(2.302585 - sigma**2 / 2, sigma), 40.0),
                    samples=2,
                )
            ],
            scorer=FakeScorer(pattern=filtered(0.3, seed=0)),
            train_seconds=lambda: 8.0,
            checked=False,
        )

    outcome, _ = whole_run(make)
    return outcome.train_seconds / outcome.steps


def test_staleness_buys_the_speed_it_is_there_for() -> None:
    """Step times with groups taken earliest deadline first, simulated when the contract was designed."""
    expected = {0: 49.8, 1: 22.2, 2: 14.9, 4: 9.5}
    seconds = {max_staleness: step_seconds(max_staleness) for max_staleness in expected}
    assert seconds[1] < 0.6 * seconds[0]
    assert seconds[2] < 0.8 * seconds[1]
    assert seconds == pytest.approx(expected, rel=0.15)


def calls_per_response(batch_size: int, over_sampling: float | None) -> float:
    """Calls of functions by queue, loops, log and batch plan, and by the fakes, per response trained on.

    16 responses a prompt, K = 1, 8 trainer ranks, half of all groups filtered, every event written.
    """
    steps, samples, calls = 2, 16, 0

    def make() -> World:
        chance = random.Random(0)

        def work(batch: TrainBatch) -> None:
            settings = PlanSettings(
                train_batch_size=batch_size, max_epochs=1, max_tokens=32768, overlong_filtering=True, seed=1,
                estimator="group_norm", loss_agg_mode="token-mean", longest_response=1,
            )  # fmt: skip
            plan_batch(batch, settings, ranks=8)

        return build(
            batch_size=batch_size,
            max_staleness=1,
            samples=samples,
            steps=steps,
            prompt_count=10 * batch_size,
            engines=[
                FakeEngine(index, samples=samples, latency=lambda: chance.lognormvariate(4.0, 1.0))
                for index in range(8)
            ],
            scorer=FakeScorer(pattern=filtered(0.5, seed=0)),
            train_seconds=lambda: 100.0,
            work=work,
            over_sampling=over_sampling,
            generate_timeout=1e6,
            stall_timeout=1e6,
            checked=False,
            log=EventLog(io.StringIO(), clock=asyncio.get_running_loop().time),
        )

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        whole_run(make)
    finally:
        sys.setprofile(before)
    return calls / (steps * batch_size * samples)


@pytest.mark.parametrize("over_sampling", [1.0, None])
def test_what_the_controller_does_for_a_response_does_not_grow_with_the_batch(over_sampling: float | None) -> None:
    """Four times the batch; what scanned all groups for each would take four times the calls."""
    small, large = calls_per_response(32, over_sampling), calls_per_response(128, over_sampling)
    assert large < 1.5 * small
    assert large < 600
