"""The staleness contract: every bound by name, then the contract under random interleavings.

``policy_with(K, P)`` has (K + 1) * P slots. Groups are numbered in order of dispatch.
"""

from __future__ import annotations

import contextlib
import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapo_openrlhf.pipeline.staleness import StalenessPolicy, StalenessViolation, Waiting
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup


def policy_with(max_staleness: int, batch_size: int) -> StalenessPolicy:
    return StalenessPolicy(batch_size=batch_size, max_staleness=max_staleness)


def group(group_id: int, oldest_version: int) -> RolloutGroup:
    return RolloutGroup(
        id=group_id,
        prompt=Prompt(id=group_id, text="", label=""),
        prompt_length=1,
        rollouts=(Rollout(length=1, truncated=False, cut=False, correct=True, reward=1.0),),
        oldest_version=PolicyVersion(oldest_version),
        newest_version=PolicyVersion(oldest_version),
        engine=0,
        tokens=None,
    )


def dispatch(policy: StalenessPolicy, *group_ids: int) -> list[int]:
    return [policy.dispatch(group_id) for group_id in group_ids]


def keep(policy: StalenessPolicy, group_ids: Iterable[int]) -> None:
    """Those of the groups that still are in flight are finished."""
    for group_id in group_ids:
        with contextlib.suppress(StalenessViolation):
            policy.keep(group_id)


def select(policy: StalenessPolicy, ready: Iterable[int]) -> tuple[int, ...] | Waiting:
    keep(policy, ready)
    return policy.select()


def take(policy: StalenessPolicy, group_ids: Iterable[int], *, oldest_version: int) -> PolicyVersion:
    group_ids = list(group_ids)
    keep(policy, group_ids)
    return policy.take([group(group_id, oldest_version) for group_id in group_ids])


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize(("max_staleness", "batch_size", "slots"), [(0, 1, 1), (0, 8, 8), (1, 4, 8), (4, 3, 15)])
def test_slots_are_k_plus_one_batches(max_staleness: int, batch_size: int, slots: int) -> None:
    policy = policy_with(max_staleness, batch_size)
    assert policy.slots == policy.free_slots == slots
    dispatch(policy, *range(slots))
    assert policy.free_slots == 0
    with pytest.raises(StalenessViolation, match=f"without a free slot of {slots}"):
        policy.dispatch(slots)


def test_dropped_group_frees_its_slot_at_once() -> None:
    policy = policy_with(1, 1)
    dispatch(policy, 0, 1)
    policy.drop(0)
    assert policy.free_slots == 1
    dispatch(policy, 2)
    assert policy.free_slots == 0


def test_trained_group_frees_its_slot_only_when_its_weights_are_live() -> None:
    policy = policy_with(1, 2)
    dispatch(policy, 0, 1, 2, 3)
    take(policy, [0, 1], oldest_version=0)
    assert (policy.free_slots, policy.training_slots) == (0, 2)
    with pytest.raises(StalenessViolation, match="without a free slot"):
        policy.dispatch(4)
    policy.publication_live(PolicyVersion(1))
    assert (policy.free_slots, policy.training_slots) == (2, 0)


def test_each_publication_frees_its_own_batch_only() -> None:
    policy = policy_with(2, 2)
    dispatch(policy, *range(6))
    take(policy, [0, 1], oldest_version=0)
    take(policy, [2, 3], oldest_version=0)
    assert (policy.free_slots, policy.training_slots) == (0, 4)
    policy.publication_live(PolicyVersion(1))
    assert (policy.free_slots, policy.training_slots) == (2, 2)
    policy.publication_live(PolicyVersion(2))
    assert (policy.free_slots, policy.training_slots) == (4, 0)


def test_a_group_is_dispatched_once() -> None:
    policy = policy_with(1, 1)
    policy.dispatch(7)
    with pytest.raises(StalenessViolation, match="group 7 dispatched twice"):
        policy.dispatch(7)


@pytest.mark.parametrize(("batch_size", "max_staleness"), [(0, 1), (-1, 1), (1, -1)])
def test_impossible_sizes_are_refused(batch_size: int, max_staleness: int) -> None:
    with pytest.raises(ValueError, match=f"got {batch_size} and {max_staleness}"):
        StalenessPolicy(batch_size=batch_size, max_staleness=max_staleness)


# ---------------------------------------------------------------- deadlines


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_deadline_is_the_live_version_plus_k(max_staleness: int) -> None:
    policy = policy_with(max_staleness, 1)
    assert dispatch(policy, 0) == [max_staleness]
    take(policy, [0], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    assert dispatch(policy, 1) == [1 + max_staleness]


def test_deadline_counts_from_the_live_version_not_the_trainers() -> None:
    policy = policy_with(2, 1)
    dispatch(policy, 0)
    take(policy, [0], oldest_version=0)  # the trainer is at version 1, engines are at 0
    assert policy.trainer_version == 1
    assert dispatch(policy, 1) == [2]


# ---------------------------------------------------------------- select


def test_too_few_groups_ready() -> None:
    policy = policy_with(1, 2)
    dispatch(policy, 0, 1, 2)
    assert select(policy, [2]) == Waiting("1 of 2 groups ready")


def test_earliest_deadline_first_then_order_of_dispatch() -> None:
    policy = policy_with(1, 2)
    dispatch(policy, 0, 1, 2, 3)
    take(policy, [0, 1], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 4, 5)
    # 2 and 3 are due at version 1, 4 and 5 at version 2; the order in which they finished does not matter.
    assert select(policy, [5, 4, 3, 2]) == (2, 3)
    assert select(policy, {5: None, 3: None, 2: None}) == (2, 3)


def test_a_batch_need_not_wait_for_groups_that_are_not_due() -> None:
    policy = policy_with(1, 2)
    dispatch(policy, 0, 1, 2, 3)
    assert select(policy, [3, 1]) == (1, 3)  # 0 and 2 have until version 1, where they fit


def test_rule_1_a_group_that_is_due_is_waited_for() -> None:
    policy = policy_with(1, 1)
    dispatch(policy, 0, 1)
    take(policy, [1], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 2)  # due at 2; group 0 is due at 1 and still in flight
    assert select(policy, [2]) == Waiting("groups due by version 1 are still in flight", (0,))
    assert select(policy, [2, 0]) == (0,)


def test_rule_1_a_dropped_group_is_not_waited_for() -> None:
    policy = policy_with(1, 1)
    dispatch(policy, 0, 1)
    take(policy, [1], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 2)
    policy.drop(0)
    assert select(policy, [2]) == (2,)


def test_at_k_0_a_batch_is_all_there_is() -> None:
    policy = policy_with(0, 2)
    dispatch(policy, 0, 1)
    policy.drop(1)
    dispatch(policy, 2)  # the replacement, alone at the tail of the step
    assert select(policy, [0]) == Waiting("1 of 2 groups ready")
    assert select(policy, [2, 0]) == (0, 2)


def test_rule_2_no_more_groups_than_batches_can_hold_may_stay_behind() -> None:
    policy = policy_with(2, 1)
    dispatch(policy, 0, 1, 2)
    take(policy, [0], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 3)
    # At version 1 nothing is due yet: 1 and 2 have until version 2, 3 has until 3. But taking 3 would leave two
    # groups for the one batch at version 2.
    assert select(policy, [3]) == Waiting("groups due by version 2 are still in flight", (1, 2))
    assert select(policy, [3, 2]) == (2,)  # leaves one for version 2: group 1


def test_rule_2_names_the_groups_it_waits_for() -> None:
    policy = policy_with(3, 2)
    dispatch(policy, *range(8))
    take(policy, [0, 1], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 8, 9)
    # Before version 1: six groups are due by version 3. After its batch at most 2 * 2 of them may be left, so the
    # batch must hold two of them; 8 and 9 are due at version 4.
    assert select(policy, [2, 8, 9]) == Waiting("groups due by version 3 are still in flight", (3, 4, 5, 6, 7))
    assert select(policy, [2, 8, 9, 5]) == (2, 5)


def test_select_changes_nothing() -> None:
    policy = policy_with(1, 1)
    dispatch(policy, 0, 1)
    assert select(policy, [0, 1]) == select(policy, [0, 1]) == (0,)
    assert (policy.free_slots, policy.trainer_version) == (0, 0)


# ---------------------------------------------------------------- take asserts the contract


@pytest.mark.parametrize("count", [0, 1, 3])
def test_take_wants_exactly_p_groups(count: int) -> None:
    policy = policy_with(1, 2)
    dispatch(policy, 0, 1, 2)
    with pytest.raises(StalenessViolation, match=f"batch of {count} groups taken, not 2"):
        take(policy, range(count), oldest_version=0)


def test_take_refuses_a_group_that_is_too_old() -> None:
    policy = policy_with(1, 1)
    for version in range(2):
        dispatch(policy, version)
        take(policy, [version], oldest_version=version)
        policy.publication_live(PolicyVersion(version + 1))
    dispatch(policy, 2)
    with pytest.raises(StalenessViolation, match="group 2 has policy age 2 at version 2, allowed 0 to 1"):
        take(policy, [2], oldest_version=0)


def test_take_refuses_a_group_from_the_future() -> None:
    policy = policy_with(1, 1)
    dispatch(policy, 0)
    with pytest.raises(StalenessViolation, match="policy age -1"):
        take(policy, [0], oldest_version=1)


def test_take_refuses_to_leave_a_group_behind_its_deadline() -> None:
    policy = policy_with(1, 1)
    dispatch(policy, 0, 1)
    take(policy, [1], oldest_version=0)
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 2)
    with pytest.raises(StalenessViolation, match=r"groups \[0\] were due at version 1 and are not in its batch"):
        take(policy, [2], oldest_version=1)


def test_versions_go_live_one_by_one_and_only_when_trained() -> None:
    policy = policy_with(2, 1)
    dispatch(policy, 0, 1)
    with pytest.raises(StalenessViolation, match="version 1 cannot go live after 0 with 0 trained"):
        policy.publication_live(PolicyVersion(1))
    take(policy, [0], oldest_version=0)
    take(policy, [1], oldest_version=0)
    with pytest.raises(StalenessViolation, match="version 2 cannot go live after 0"):
        policy.publication_live(PolicyVersion(2))
    policy.publication_live(PolicyVersion(1))
    with pytest.raises(StalenessViolation, match="version 1 cannot go live after 1"):
        policy.publication_live(PolicyVersion(1))
    policy.publication_live(PolicyVersion(2))


# ---------------------------------------------------------------- the contract under random interleavings


@dataclass
class World:
    """A run around one policy, with books of its own: versions and ages are counted here, not read from the policy."""

    policy: StalenessPolicy
    born: dict[int, int] = field(default_factory=dict)
    """Live version at dispatch of each untaken group: the oldest that can have sampled its first token."""
    in_flight: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    """In order of completion."""
    trained: int = 0
    live: int = 0
    ages: list[int] = field(default_factory=list)
    dispatched: int = 0
    surplus: int = 0

    def dispatch(self) -> None:
        if self.policy.dispatchable:
            self.policy.dispatch(self.dispatched)
            self.born[self.dispatched] = self.live
            self.in_flight.append(self.dispatched)
            self.dispatched += 1

    def finish(self, which: int) -> None:
        if self.in_flight:
            group_id = self.in_flight.pop(which % len(self.in_flight))
            self.ready.append(group_id)
            self.policy.keep(group_id)
            self.drop_surplus()

    def drop_surplus(self) -> None:
        for group_id in self.policy.surplus():
            places = self.ready if group_id in self.ready else self.in_flight
            places.remove(group_id)
            del self.born[group_id]
            self.policy.drop(group_id)
            self.surplus += 1

    def drop(self, which: int) -> None:
        if self.in_flight:
            group_id = self.in_flight.pop(which % len(self.in_flight))
            del self.born[group_id]
            self.policy.drop(group_id)

    def take(self) -> bool:
        chosen = self.policy.select()
        if isinstance(chosen, Waiting):
            return False
        assert len(set(chosen)) == len(chosen) == self.policy.batch_size
        assert set(chosen) <= set(self.ready)
        self.ages += [self.trained - self.born[group_id] for group_id in chosen]
        assert self.policy.take([group(group_id, self.born[group_id]) for group_id in chosen]) == self.trained
        self.trained += 1
        for group_id in chosen:
            self.ready.remove(group_id)
            del self.born[group_id]
        return True

    def publish(self) -> None:
        if self.live < self.trained:
            self.live += 1
            self.policy.publication_live(PolicyVersion(self.live))

    def in_vain(self) -> tuple[int, ...]:
        """Groups that enough ready ones precede, by the definition."""
        surplus, preceding = [], 0
        for group_id in sorted(self.born):
            batches = self.born[group_id] + self.policy.max_staleness - self.trained + 1
            if preceding >= batches * self.policy.batch_size:
                surplus.append(group_id)
            elif group_id in self.ready:
                preceding += 1
        return tuple(surplus)

    def dispatch_and_finish_all(self) -> None:
        for _ in range(self.policy.dispatchable):
            self.dispatch()
        for _ in range(len(self.in_flight)):
            self.finish(0)

    def check(self) -> None:
        policy = self.policy
        assert all(0 <= age <= policy.max_staleness for age in self.ages)
        not_live = self.trained - self.live
        assert policy.training_slots == not_live * policy.batch_size
        held = len(self.born) + not_live * policy.batch_size
        assert (policy.in_flight, policy.ready) == (len(self.in_flight), len(self.ready))
        assert policy.free_slots - policy.over_sampled == policy.slots - held
        if policy.over_sampling == 1:
            assert policy.over_sampled == self.surplus == 0
            assert policy.dispatchable == policy.free_slots
        # Nothing waits for ever: whatever is missing is on its way, may be dispatched, or waits for a publication.
        chosen = policy.select()
        assert policy.available == (not isinstance(chosen, Waiting))
        assert policy.surplus() == self.in_vain()
        if isinstance(chosen, Waiting):
            if len(self.ready) < policy.batch_size:
                assert self.in_flight or policy.dispatchable or not_live
            else:
                assert chosen.late, "P groups are ready and no group in flight is waited for"
                assert set(chosen.late) <= set(self.in_flight)
        if not self.in_flight and len(self.ready) >= policy.batch_size:
            assert not isinstance(chosen, Waiting)


@settings(max_examples=300, deadline=None)
@given(
    max_staleness=st.integers(0, 4),
    batch_size=st.integers(1, 8),
    overtaking=st.sampled_from([0.0, 0.5, 0.95]),
    dropped=st.sampled_from([0.0, 0.1, 0.5]),
    publishing=st.sampled_from([0.05, 0.5, 1.0]),
    over_sampling=st.sampled_from([1.0, 1.0, 1.3, 2.5, 8.0]),
    seed=st.integers(0, 999),
)
def test_ages_never_exceed_k_and_nothing_deadlocks(
    max_staleness: int,
    batch_size: int,
    overtaking: float,
    dropped: float,
    publishing: float,
    over_sampling: float,
    seed: int,
) -> None:
    """Random interleavings of every kind of run.

    ``overtaking``: how often the youngest group ends first; ``dropped``: share of groups that end without a batch;
    ``publishing``: how soon weights go live, compared with groups ending. Slots are filled or left idle in turns.
    """
    dice = random.Random(seed)
    world = World(policy_with(max_staleness, batch_size))
    for _ in range(60 + 12 * world.policy.slots):
        if dice.random() < 0.8:
            for _ in range(dice.randint(0, world.policy.dispatchable)):
                world.dispatch()
        which = -1 if dice.random() < overtaking else dice.randrange(64)
        if dice.random() < dropped:
            world.drop(which)
        else:
            world.finish(which)
        if dice.random() < 0.7:
            world.take()
        if dice.random() < publishing:
            world.publish()
        world.check()
    # From wherever that led, work goes on: every round of dispatching, finishing and publishing gives a batch.
    for _ in range(max_staleness + 2):
        world.dispatch_and_finish_all()
        while world.live < world.trained and len(world.ready) < batch_size:
            world.publish()
            world.dispatch_and_finish_all()
        assert world.take()
        world.check()


@settings(max_examples=100, deadline=None)
@given(max_staleness=st.integers(1, 4), batch_size=st.integers(1, 8), seed=st.integers(0, 999))
def test_ages_reach_k_but_never_more_when_stragglers_wait(max_staleness: int, batch_size: int, seed: int) -> None:
    """All slots always busy, one straggler that finishes only when the policy waits for it."""
    dice = random.Random(seed)
    world = World(policy_with(max_staleness, batch_size))
    straggler = 0
    for _ in range(2 * max_staleness + 3):
        for _ in range(world.policy.dispatchable):
            world.dispatch()
        while not world.take():
            assert world.in_flight, "nothing in flight, and still no batch"
            others = [position for position, group_id in enumerate(world.in_flight) if group_id != straggler]
            world.finish(dice.choice(others) if others else 0)
        world.publish()
        world.check()
    assert max(world.ages) == max_staleness


# ---------------------------------------------------------------- the bound is not vacuous


def test_completion_order_exceeds_the_bound_and_take_refuses_it() -> None:
    """K = 1, P = 1: group 0 is a straggler which three younger groups overtake."""
    finished = [1, 2, 3, 0]
    born = {0: 0, 1: 0, 2: 1, 3: 2}  # two slots: the next group starts when a batch's weights are live
    ages = [version - born[group_id] for version, group_id in enumerate(finished)]
    assert ages == [0, 0, 0, 3]  # a queue without deadlines trains group 0 at age 3, beyond K = 1

    policy = policy_with(1, 1)
    dispatch(policy, 0, 1)
    take(policy, [1], oldest_version=born[1])  # overtaking is allowed while group 0 has time ...
    policy.publication_live(PolicyVersion(1))
    dispatch(policy, 2)
    assert isinstance(select(policy, [2]), Waiting)  # ... and is not at its deadline, version 1
    with pytest.raises(StalenessViolation, match=r"groups \[0\] were due at version 1"):
        take(policy, [2], oldest_version=born[2])


def largest_age(max_staleness: int, batch_size: int, *, completion_order: bool) -> int:
    """Train 200 batches with random latencies, the trainer at once done; only what is taken differs."""
    latency = random.Random(f"{max_staleness}/{batch_size}")
    policy = policy_with(max_staleness, batch_size)
    born: dict[int, int] = {}
    finishing: list[tuple[float, int]] = []
    ready: list[int] = []
    now, dispatched, largest = 0.0, 0, 0
    for version in range(200):
        chosen: tuple[int, ...] | Waiting = Waiting("")
        while isinstance(chosen, Waiting):
            while len(born) < policy.slots:
                if not completion_order:
                    policy.dispatch(dispatched)
                born[dispatched] = version
                heapq.heappush(finishing, (now + latency.lognormvariate(0, 1), dispatched))
                dispatched += 1
            if completion_order:
                chosen = tuple(ready[:batch_size]) if len(ready) >= batch_size else Waiting("")
            else:
                chosen = policy.select()
            if isinstance(chosen, Waiting):
                now, group_id = heapq.heappop(finishing)
                ready.append(group_id)
                if not completion_order:
                    policy.keep(group_id)
        largest = max(largest, *(version - born[group_id] for group_id in chosen))
        if not completion_order:
            policy.take([group(group_id, born[group_id]) for group_id in chosen])
            policy.publication_live(PolicyVersion(version + 1))
        for group_id in chosen:
            ready.remove(group_id)
            del born[group_id]
    return largest


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_slots_alone_are_not_a_bound(max_staleness: int, batch_size: int) -> None:
    assert largest_age(max_staleness, batch_size, completion_order=True) > max_staleness
    assert largest_age(max_staleness, batch_size, completion_order=False) <= max_staleness


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_a_straggler_holds_up_no_batch_before_its_deadline(max_staleness: int) -> None:
    """First in first out would wait for group 0 at once; K batches pass it first."""
    policy = policy_with(max_staleness, 1)
    dispatch(policy, *range(max_staleness + 1))
    keep(policy, range(1, max_staleness + 1))
    while isinstance(chosen := policy.select(), tuple):
        take(policy, chosen, oldest_version=0)
    assert policy.trainer_version == max_staleness
