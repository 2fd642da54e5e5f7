"""The bounded-staleness queue: slots on one side, exact batches on the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine

import pytest
from fakes import some_group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter, OverSampling
from dapo_openrlhf.pipeline.ledger import LedgerImbalance
from dapo_openrlhf.pipeline.rollout_queue import BatchStarvation, RolloutQueue
from dapo_openrlhf.pipeline.staleness import StalenessPolicy, StalenessViolation
from dapo_openrlhf.plan.virtual_time import Deadlock, run_virtual
from dapo_openrlhf.types import PolicyVersion, TrainBatch

ALL_RIGHT = (True, True)
ALL_WRONG = (False, False)


def make_queue(
    *,
    batch_size: int = 2,
    max_staleness: int = 1,
    max_filtered_batches: int = 5,
    stall_timeout: float = 60.0,
    filtering: bool = True,
) -> RolloutQueue:
    return RolloutQueue(
        policy=StalenessPolicy(batch_size=batch_size, max_staleness=max_staleness),
        group_filter=GroupFilter(enabled=filtering),
        over_sampling=OverSampling(factor=1.0, window=batch_size),
        max_filtered_batches=max_filtered_batches,
        stall_timeout=stall_timeout,
    )


def in_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Runs an ``async def`` test in virtual time."""

    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def a_while() -> None:
    """Long enough for every other task to get stuck."""
    await asyncio.sleep(0.001)


async def train(queue: RolloutQueue, step: int, *, live: bool = True) -> tuple[int, ...]:
    """Take a batch that must be there, train it and, unless told otherwise, bring its weights to life."""
    async with asyncio.timeout(0.5):
        batch = await queue.take(step)
    queue.trained(batch)
    if live:
        queue.publication_live(PolicyVersion(batch.version + 1))
    return tuple(group.id for group in batch.groups)


def ids(batch: TrainBatch) -> list[int]:
    return [group.id for group in batch.groups]


@in_loop
async def test_a_batch_has_exactly_p_groups_and_leaves_the_rest() -> None:
    queue = make_queue(batch_size=2, max_staleness=1)
    taking = asyncio.create_task(queue.take(0))
    for _ in range(4):
        queue.dispatch()
    queue.offer(some_group(1))
    await a_while()
    assert not taking.done()
    for group in (3, 0, 2):
        queue.offer(some_group(group))
    batch = await taking
    assert (batch.step, batch.version, ids(batch)) == (0, 0, [0, 1])
    assert (queue.ready, queue.in_flight, queue.free_slots) == (2, 0, 0)


@in_loop
async def test_a_straggler_at_its_deadline_is_waited_for_while_later_groups_are_ready() -> None:
    """Group 0 was dispatched at version 0 with K = 1: version 1 is the last that may train it.

    In order of completion batch 1 would be groups 3 and 5, and batch 2 at the earliest group 0's, at age 2.
    """
    queue = make_queue(batch_size=2, max_staleness=1)
    assert [queue.dispatch() for _ in range(4)] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    for group in (1, 2, 3):
        queue.offer(some_group(group))
    assert await train(queue, 0) == (1, 2)
    assert [queue.dispatch() for _ in range(2)] == [(4, 2), (5, 2)]
    taking = asyncio.create_task(queue.take(1))
    for group in (5, 4):
        queue.offer(some_group(group, version=1))
        await a_while()
    assert queue.ready == 3
    assert not taking.done()
    queue.offer(some_group(0))
    batch = await taking
    assert ids(batch) == [0, 3]
    assert batch.ages == (1, 1)


@in_loop
async def test_a_batch_leaves_room_for_what_falls_due_later() -> None:
    """K = 2, P = 1: groups 1 and 2 are due by version 2. Version 1 must take one, though group 3 is ready."""
    queue = make_queue(batch_size=1, max_staleness=2)
    assert [queue.dispatch() for _ in range(3)] == [(0, 2), (1, 2), (2, 2)]
    queue.offer(some_group(0))
    assert await train(queue, 0) == (0,)
    assert queue.dispatch() == (3, 3)
    queue.offer(some_group(3, version=1))
    taking = asyncio.create_task(queue.take(1))
    await a_while()
    assert not taking.done()
    queue.offer(some_group(2))
    assert ids(await taking) == [2]


@in_loop
async def test_a_group_ahead_of_its_deadline_is_not_waited_for() -> None:
    queue = make_queue(batch_size=1, max_staleness=1)
    queue.dispatch()
    queue.dispatch()
    queue.offer(some_group(1))
    assert await train(queue, 0) == (1,)


@in_loop
async def test_a_dropped_or_failed_groups_slot_is_free_at_once() -> None:
    queue = make_queue(batch_size=2, max_staleness=0)
    queue.dispatch()
    queue.dispatch()
    waiting = asyncio.create_task(queue.slot())
    await a_while()
    assert not waiting.done()
    assert not queue.offer(some_group(0, right=ALL_WRONG)).keep
    assert queue.free_slots == 1
    await waiting
    queue.dispatch()
    waiting = asyncio.create_task(queue.slot())
    await a_while()
    assert not waiting.done()
    queue.fail(1, "engine_error", "broken")
    await waiting
    assert queue.free_slots == 1


@in_loop
async def test_a_trained_groups_slot_is_free_only_when_its_successor_weights_are_live() -> None:
    queue = make_queue(batch_size=1, max_staleness=1)
    for group in range(2):
        queue.dispatch()
        queue.offer(some_group(group))
    waiting = asyncio.create_task(queue.slot())
    batch = await queue.take(0)
    await a_while()
    assert (queue.free_slots, waiting.done()) == (0, False)
    queue.trained(batch)
    await a_while()
    assert (queue.free_slots, waiting.done()) == (0, False)
    queue.publication_live(PolicyVersion(1))
    await waiting
    assert (queue.free_slots, queue.live_version) == (1, 1)


@in_loop
async def test_no_group_is_dispatched_without_a_slot() -> None:
    queue = make_queue(batch_size=1, max_staleness=0)
    queue.dispatch()
    with pytest.raises(StalenessViolation, match="without a free slot"):
        queue.dispatch()


@in_loop
async def test_a_group_ends_once() -> None:
    queue = make_queue()
    queue.dispatch()
    queue.offer(some_group(0))
    with pytest.raises(KeyError):
        queue.offer(some_group(0))
    with pytest.raises(KeyError):
        queue.fail(0, "engine_error", "broken")


@in_loop
async def test_without_dynamic_sampling_every_group_is_kept() -> None:
    queue = make_queue(filtering=False)
    for group, right in enumerate((ALL_RIGHT, ALL_WRONG)):
        queue.dispatch()
        assert queue.offer(some_group(group, right=right)).keep
    assert await train(queue, 0) == (0, 1)


@in_loop
async def test_counters_tell_every_place() -> None:
    queue = make_queue(batch_size=2, max_staleness=3)
    for _ in range(8):
        queue.dispatch()
    for group in range(5):
        queue.offer(some_group(group))
    queue.offer(some_group(5, right=ALL_RIGHT))
    queue.fail(6, "engine_died", "gone")
    assert await train(queue, 0, live=False) == (0, 1)
    batch = await queue.take(1)
    places = {
        "dispatched": 8,
        "trained": 2,
        "training": 2,
        "dropped": {"all_right": 1},
        "failed": {"engine_died": 1},
        "in_flight": 1,
        "ready": 1,
    }
    assert queue.counters() == places
    queue.trained(batch)
    assert queue.counters() == places | {"trained": 4, "training": 0}


@in_loop
async def test_a_lost_group_is_noticed_at_the_next_batch() -> None:
    queue = make_queue(batch_size=1, max_staleness=1)
    queue.dispatch()
    queue.dispatch()
    queue._in_flight.remove(1)  # what no caller can do
    queue.offer(some_group(0))
    with pytest.raises(LedgerImbalance, match="do not add up"):
        await queue.take(0)


# ---------------------------------------------------------------- diagnoses


async def starve(queue: RolloutQueue, end: Callable[[int], None]) -> tuple[int, str]:
    """Ends group after group by ``end`` until ``take`` gives up: after how many, and its words."""
    taking = asyncio.create_task(queue.take(0))
    ended = 0
    while not taking.done():
        group, _ = queue.dispatch()
        end(group)
        ended += 1
        await a_while()
    with pytest.raises(BatchStarvation) as raised:
        await taking
    return ended, str(raised.value)


@in_loop
async def test_the_limit_of_dropped_groups_is_exact() -> None:
    queue = make_queue(batch_size=3, max_filtered_batches=5)
    ended, words = await starve(queue, lambda group: void(queue.offer(some_group(group, right=ALL_WRONG))))
    assert ended == 15
    assert "15 groups were dropped while one batch of 3 was filled (0 of 3 groups ready)" in words


@in_loop
async def test_starvation_names_the_commoner_cause_and_its_remedy() -> None:
    queue = make_queue(batch_size=2, max_filtered_batches=5)
    _, words = await starve(
        queue, lambda group: void(queue.offer(some_group(group, right=ALL_WRONG if group % 3 else ALL_RIGHT)))
    )
    assert "4 all right, 6 all wrong" in words
    assert "too hard" in words
    queue = make_queue(batch_size=2, max_filtered_batches=5)
    _, words = await starve(
        queue, lambda group: void(queue.offer(some_group(group, right=ALL_RIGHT if group % 3 else ALL_WRONG)))
    )
    assert "6 all right, 4 all wrong" in words
    assert "too easy" in words


@in_loop
async def test_dropped_groups_count_anew_for_every_batch() -> None:
    queue = make_queue(batch_size=1, max_staleness=0, max_filtered_batches=5)
    for step in range(4):
        taking = asyncio.create_task(queue.take(step))
        for _ in range(4):
            group, _ = queue.dispatch()
            queue.offer(some_group(group, version=step, right=ALL_WRONG))
            await a_while()
        group, _ = queue.dispatch()
        queue.offer(some_group(group, version=step))
        queue.trained(await taking)
        queue.publication_live(PolicyVersion(step + 1))
    assert queue.counters()["dropped"] == {"all_wrong": 16}


@pytest.mark.parametrize(("batch_size", "max_staleness", "failures"), [(1, 0, 8), (2, 1, 8), (4, 1, 16)])
def test_two_failures_of_every_slot_in_a_row_are_enough(
    batch_size: int,
    max_staleness: int,
    failures: int,
) -> None:
    """But not fewer than eight, so that a small run is not stopped by one bad group."""
    queue = make_queue(batch_size=batch_size, max_staleness=max_staleness)
    ended, words = run_virtual(starve(queue, lambda group: queue.fail(group, "reward_error", "no module")))
    assert ended == failures
    assert f"the last {failures} groups all failed, by reason: {{'reward_error': {failures}}}" in words
    assert f"group {failures - 1}: no module" in words


@in_loop
async def test_failures_with_a_finished_group_in_between_do_not_add_up() -> None:
    queue = make_queue(batch_size=1, max_staleness=0)
    taking = asyncio.create_task(queue.take(0))
    for _ in range(4):
        for _ in range(7):
            queue.fail(queue.dispatch()[0], "engine_error", "broken")
            await a_while()
        queue.offer(some_group(queue.dispatch()[0], right=ALL_WRONG))
        await a_while()
    assert not taking.done()
    taking.cancel()


@in_loop
async def test_after_many_failures_a_group_still_in_flight_decides() -> None:
    """Nothing more is dispatched until it ends; when it ends well, all goes on."""
    queue = make_queue(batch_size=2, max_staleness=0)
    slow, _ = queue.dispatch()
    taking = asyncio.create_task(queue.take(0))
    for _ in range(8):
        queue.fail(queue.dispatch()[0], "engine_error", "broken")
    dispatching = asyncio.create_task(queue.slot())
    await a_while()
    assert (queue.free_slots, dispatching.done(), taking.done()) == (1, False, False)
    queue.offer(some_group(slow))
    await dispatching
    queue.offer(some_group(queue.dispatch()[0]))
    assert ids(await taking) == [0, 9]


@in_loop
async def test_a_stall_names_the_groups_in_flight() -> None:
    queue = make_queue(batch_size=6, stall_timeout=30.0)
    for _ in range(12):
        queue.dispatch()
    queue.offer(some_group(3))
    taking = asyncio.create_task(queue.take(7))
    await asyncio.sleep(29.0)
    queue.offer(some_group(1))
    await asyncio.sleep(29.0)
    assert not taking.done(), "a group that ends starts the count anew"
    with pytest.raises(BatchStarvation) as raised:
        await taking
    assert asyncio.get_running_loop().time() == pytest.approx(59.0)
    assert str(raised.value) == (
        "step 7: no group has ended for 30 s (2 of 6 groups ready); "
        "in flight are groups [0, 2, 4, 5, 6, 7, 8, 9] and more"
    )


# ---------------------------------------------------------------- any order of events whatsoever


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    batch_size=st.integers(1, 8),
    max_staleness=st.integers(0, 4),
    eager_weights=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_order_of_events_keeps_the_contract(
    batch_size: int, max_staleness: int, eager_weights: bool, seed: int
) -> None:
    """Groups end in any order, weights go live at any time, groups start with the live weights or newer ones.

    Judged by versions noted down here. With nothing in flight a batch must be there: else ``take`` deadlocks.
    """

    async def main() -> None:
        chance = random.Random(seed)
        queue = make_queue(
            batch_size=batch_size, max_staleness=max_staleness, max_filtered_batches=10_000, stall_timeout=1e9
        )
        started_at: dict[int, int] = {}
        running: list[int] = []
        trained = live = 0
        patience = chance.choice([0.1, 0.5, 0.9])
        taking = asyncio.create_task(queue.take(0))
        while trained < 12:
            while queue.free_slots and chance.random() < 0.9:
                group, deadline = queue.dispatch()
                assert deadline == live + max_staleness
                started_at[group] = trained if eager_weights and chance.random() < 0.5 else live
                running.append(group)
            if running:
                group = running.pop(0 if chance.random() > patience else chance.randrange(len(running)))
                if chance.random() < 0.1:
                    queue.fail(group, "engine_error", "broken")
                else:
                    right = (True, False) if chance.random() < 0.6 else ALL_WRONG
                    queue.offer(some_group(group, version=started_at[group], right=right))
            if not (running or queue.free_slots) and live == trained:
                async with asyncio.timeout(10.0):
                    await asyncio.wait([taking])
            await a_while()
            queue.counters()
            if taking.done():
                batch = taking.result()
                assert len(set(ids(batch))) == batch_size
                for group in ids(batch):
                    assert 0 <= trained - started_at.pop(group) <= max_staleness
                queue.trained(batch)
                trained += 1
                taking = asyncio.create_task(queue.take(trained))
            if live < trained and (chance.random() < 0.3 or not (running or queue.free_slots)):
                live += 1
                queue.publication_live(PolicyVersion(live))
        taking.cancel()

    run_virtual(main())


def test_a_deadlock_is_an_error_that_says_who_waits() -> None:
    """The loop these tests run in can fail."""

    async def main() -> None:
        await make_queue(batch_size=1, max_staleness=0, stall_timeout=5.0).slot()
        await asyncio.sleep(3.0)
        queue = make_queue(batch_size=1, max_staleness=0)
        queue.dispatch()
        await queue.slot()

    with pytest.raises(Deadlock, match=r"at 3 s nothing .* waits in test_a_deadlock"):
        run_virtual(main())


def void(_: object) -> None:
    """A call's result is not needed."""
