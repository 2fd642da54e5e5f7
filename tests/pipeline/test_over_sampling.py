"""Over-sampling and cutting: more groups in flight than slots, surplus dropped and counted, stragglers ended."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter

import pytest
from fakes import HANG, FakeEngine, FakeGroup, FakeScorer, World, all_right, build, filtered, mixed

from dapo_openrlhf.pipeline.conductor import Outcome
from dapo_openrlhf.pipeline.dynamic_sampling import CAUTION, MOST_OVER_SAMPLING, OverSampling
from dapo_openrlhf.pipeline.events import BatchTaken, GroupCut, GroupDispatched, GroupSurplus
from dapo_openrlhf.pipeline.staleness import StalenessPolicy, Waiting
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import FilterDecision, TrainBatch


def run(world: World) -> tuple[Outcome, World]:
    async def main() -> Outcome:
        return await world.run()

    return run_virtual(main()), world


def whole_run(**settings: object) -> tuple[Outcome, World]:
    async def main() -> tuple[Outcome, World]:
        world = build(**settings)
        return await world.run(), world

    return run_virtual(main())


# ---------------------------------------------------------------- the factor


def test_a_fixed_factor_stays() -> None:
    over_sampling = OverSampling(factor=2.5, window=2)
    for _ in range(9):
        over_sampling.observe(FilterDecision(True, "kept"))
    assert over_sampling.factor == 2.5


@pytest.mark.parametrize(
    ("kept", "factor"),
    [([True] * 4, 1.0), ([True, False, False, False], 4 * CAUTION), ([False] * 4, 4 * CAUTION), ([True] * 3, 1.0)],
)
def test_the_factor_is_the_inverse_of_the_pass_rate_of_a_window(kept: list[bool], factor: float) -> None:
    over_sampling = OverSampling(factor=None, window=4)
    for keep in [True, True, *kept] if len(kept) == 4 else kept:
        over_sampling.observe(FilterDecision(keep, ""))
    assert over_sampling.factor == pytest.approx(factor)


def test_the_factor_has_a_bound() -> None:
    over_sampling = OverSampling(factor=None, window=1000)
    for _ in range(1000):
        over_sampling.observe(FilterDecision(False, "all_wrong"))
    assert over_sampling.factor == MOST_OVER_SAMPLING


@pytest.mark.parametrize("factor", [0.5, float("nan")])
def test_a_factor_below_one_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OverSampling(factor=factor, window=1)
    with pytest.raises(ValueError, match="at least 1"):
        StalenessPolicy(batch_size=1, max_staleness=0).over_sampling = factor


# ---------------------------------------------------------------- the contract with more groups than slots


def over_sampled_policy(max_staleness: int, batch_size: int, factor: float) -> StalenessPolicy:
    policy = StalenessPolicy(batch_size=batch_size, max_staleness=max_staleness)
    policy.over_sampling = factor
    for group_id in range(policy.dispatchable):
        policy.dispatch(group_id)
    return policy


def test_groups_in_flight_share_slots() -> None:
    policy = over_sampled_policy(0, 2, 2.5)
    assert (policy.in_flight, policy.free_slots, policy.over_sampled) == (5, 0, 3)
    policy.keep(0)  # holds a whole slot now: one is left, for two groups in flight at most
    assert (policy.in_flight, policy.dispatchable) == (4, 0)
    for group_id in (1, 2, 3):
        policy.drop(group_id)
    assert (policy.in_flight, policy.dispatchable) == (1, 1)


def test_a_batch_is_the_first_groups_dispatched_that_are_kept_however_long_they_take() -> None:
    """Short responses end first; they must not be chosen for it."""
    policy = over_sampled_policy(0, 2, 2.0)
    policy.keep(2)
    policy.keep(3)
    assert policy.select() == Waiting("groups due by version 0 are still in flight", (0, 1))
    policy.keep(0)
    assert policy.surplus() == (3,)  # 0 and 2 precede it
    policy.drop(3)
    assert policy.select() == Waiting("groups due by version 0 are still in flight", (1,))
    policy.drop(1)
    assert policy.select() == (0, 2)


def test_groups_in_flight_that_come_too_late_in_any_case_are_surplus() -> None:
    policy = over_sampled_policy(0, 2, 3.0)
    policy.keep(1)
    assert policy.surplus() == ()
    policy.keep(0)
    assert policy.surplus() == (2, 3, 4, 5)


def test_with_staleness_groups_may_overtake_only_where_no_other_loses_its_place() -> None:
    policy = over_sampled_policy(1, 1, 2.0)  # groups 0 to 3, due at version 1: room for two
    policy.keep(3)
    assert policy.select() == Waiting("groups due by version 1 are still in flight", (0, 1, 2))
    policy.drop(0)
    assert isinstance(policy.select(), Waiting)  # 1 and 2 may need both places
    policy.drop(1)
    assert policy.select() == (3,)  # leaves one for group 2


# ---------------------------------------------------------------- whole runs


def test_over_sampling_shortens_a_step_in_which_many_groups_are_dropped() -> None:
    def step_seconds(over_sampling: float | None) -> float:
        outcome, _ = whole_run(
            batch_size=16,
            max_staleness=0,
            steps=20,
            scorer=FakeScorer(pattern=filtered(0.6, seed=1)),
            engines=[FakeEngine(latency=lambda: 10.0)],
            over_sampling=over_sampling,
            checked=False,
        )
        return outcome.train_seconds / outcome.steps

    assert step_seconds(None) < 0.75 * step_seconds(1.0)


def test_no_length_is_favoured() -> None:
    """Groups of 1 s and of 9 s in turns, every other one dropped at random: half of what is trained is long."""
    seconds = itertools.cycle([1.0, 9.0])
    long: Counter[bool] = Counter()

    def look(batch: TrainBatch) -> None:
        for group in batch.groups:
            made = group.tokens
            assert isinstance(made, FakeGroup)
            long[made.ended - made.started > 5.0] += 1

    _, world = whole_run(
        batch_size=8,
        max_staleness=1,
        steps=60,
        engines=[FakeEngine(latency=lambda: next(seconds))],
        scorer=FakeScorer(pattern=filtered(0.5, seed=2)),
        over_sampling=3.0,  # more than needed, so that there is surplus
        work=look,
        train_seconds=lambda: 3.0,
    )
    assert len(world.of(GroupSurplus)) > 100
    assert long[True] / long.total() == pytest.approx(0.5, abs=0.07)


def test_surplus_prompts_come_first_again_and_their_groups_end_in_the_engine() -> None:
    latency = itertools.chain([1.0, 1.0], itertools.repeat(5.0))
    _, world = whole_run(
        batch_size=2,
        max_staleness=0,
        steps=2,
        engines=[FakeEngine(latency=lambda: next(latency))],
        over_sampling=2.0,
    )
    surplus = [event.group for time, event in world.of(GroupSurplus) if time == 1.0]
    assert surplus == [2, 3]
    dispatched = {event.group: event.prompt for _, event in world.of(GroupDispatched)}
    assert [dispatched[4], dispatched[5]] == [dispatched[2], dispatched[3]]
    assert [group.end for group in world.engines[0].made[2:4]] == ["cancelled"] * 2


def test_queue_places_add_up_with_over_sampling() -> None:
    chance = random.Random(5)
    _, world = whole_run(
        batch_size=4,
        max_staleness=1,
        steps=12,
        over_sampling=2.0,
        scorer=FakeScorer(pattern=filtered(0.5, seed=4)),
        deliver_seconds=lambda: 1.0,
        engines=[FakeEngine(latency=lambda: chance.uniform(1, 5))],
    )
    taken = [event for _, event in world.of(BatchTaken)]
    for event in taken:
        places = event.in_flight + event.ready + event.training_slots + event.free_slots
        assert places == 8 + event.over_sampled
    assert any(event.over_sampled for event in taken)


# ---------------------------------------------------------------- cutting


def test_a_straggler_at_its_deadline_is_cut_when_all_else_is_ready() -> None:
    latency = itertools.chain([HANG], itertools.repeat(1.0))
    _, world = whole_run(
        batch_size=2,
        max_staleness=1,
        steps=4,
        engines=[FakeEngine(latency=lambda: next(latency))],
        cut_late=True,
    )
    ((at, event),) = world.of(GroupCut)
    assert event.group == 0
    assert at == 3.0  # version 1 is its deadline: one batch went before, and 1 s later the second is ready but for it
    taken = {group: event for _, event in world.of(BatchTaken) for group in event.groups}[0]
    assert (taken.version, taken.cut) == (1, 2)
    assert max(age for batch in world.trainer.batches for age in batch.ages) == 1


class SlowToCut(FakeEngine):
    """Ends a group two seconds after it is told to."""

    def cut(self, request: str) -> None:
        asyncio.get_running_loop().call_later(2.0, super().cut, request)


def test_a_straggler_is_cut_once_though_others_end_before_it_does() -> None:
    chance = random.Random(3)
    engine = SlowToCut(latency=lambda: HANG if chance.random() < 0.1 else chance.uniform(0.1, 0.5))
    _, world = whole_run(
        batch_size=4, steps=12, engines=[engine], scorer=FakeScorer(pattern=filtered(0.6, seed=3)), cut_late=True
    )
    cut = [event.group for _, event in world.of(GroupCut)]
    assert len(cut) == len(set(cut)) > 3


def test_nothing_is_cut_before_the_batch_waits_for_it_alone() -> None:
    _, world = whole_run(batch_size=4, steps=5, engines=[FakeEngine(latency=lambda: 30.0)], cut_late=True)
    assert world.of(GroupCut) == []


def test_a_cut_group_that_the_filter_drops_is_replaced() -> None:
    latency = itertools.chain([HANG], itertools.repeat(1.0))
    engine = FakeEngine(latency=lambda: next(latency))
    scorer = FakeScorer(pattern=lambda group: all_right(group) if group is engine.made[0] else mixed(group))
    outcome, world = whole_run(
        batch_size=2,
        max_staleness=0,
        steps=3,
        engines=[engine],
        scorer=scorer,
        over_sampling=1.5,
        cut_late=True,
    )
    assert outcome.steps == 3
    assert outcome.counters["dropped"]["all_right"] == len(world.of(GroupCut)) == 1
