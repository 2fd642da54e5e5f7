"""The bounded-staleness queue between rollouts and training (asyncio).

It is the only holder of groups: every group between dispatch and training is in ``_in_flight`` or ``_ready``. Which
groups a batch may hold is decided by :class:`~dapo_openrlhf.pipeline.staleness.StalenessPolicy`, which groups carry a gradient
by :class:`~dapo_openrlhf.pipeline.dynamic_sampling.GroupFilter`, and the :class:`~dapo_openrlhf.pipeline.ledger.Ledger` is checked
against the groups actually held whenever a batch is taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from dapo_openrlhf.pipeline.dynamic_sampling import ALL_RIGHT, ALL_WRONG, SURPLUS, GroupFilter, OverSampling
from dapo_openrlhf.pipeline.ledger import Ledger
from dapo_openrlhf.pipeline.ports import ENGINE_DIED
from dapo_openrlhf.pipeline.staleness import StalenessPolicy, Waiting
from dapo_openrlhf.types import FilterDecision, PolicyVersion, Prompt, RolloutGroup, TrainBatch

MIN_FAILURES = 8


class BatchStarvation(RuntimeError):
    """No batch can be filled; the message says why."""


class RolloutQueue:
    """Slots on one side, exact batches of P groups on the other."""

    def __init__(
        self,
        *,
        policy: StalenessPolicy,
        group_filter: GroupFilter,
        over_sampling: OverSampling,
        max_filtered_batches: int,
        stall_timeout: float,
        ledger: Ledger | None = None,
    ) -> None:
        """``stall_timeout``: seconds without the end of any group after which a waiting trainer gives up.

        ``ledger``: the counters of the queue that this one takes the place of; ids of groups go on from there.
        """
        self._policy = policy
        self._filter = group_filter
        self._over_sampling = over_sampling
        policy.over_sampling = over_sampling.factor
        self._max_dropped = max_filtered_batches * policy.batch_size
        self._stall_timeout = stall_timeout
        self._ledger = ledger or Ledger()
        self._in_flight: set[int] = set()
        self._ready: dict[int, RolloutGroup] = {}
        self._dropped_since_batch: Counter[str] = Counter()
        self._failures_in_a_row: list[tuple[str, str]] = []  # reason and message
        self._slot_freed = asyncio.Event()
        self._group_ended = asyncio.Event()
        self._held_up = False  # the trainer waits although P groups are ready
        self._held_up_changed = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Number of groups between dispatch and the filter's decision."""
        return len(self._in_flight)

    @property
    def in_flight_ids(self) -> frozenset[int]:
        """Ids of the groups between dispatch and the filter's decision."""
        return frozenset(self._in_flight)

    @property
    def ready(self) -> int:
        """Number of kept groups that wait for a batch."""
        return len(self._ready)

    @property
    def ready_prompts(self) -> tuple[Prompt, ...]:
        """Prompts of the kept groups that wait for a batch."""
        return tuple(group.prompt for group in self._ready.values())

    @property
    def free_slots(self) -> int:
        """Number of slots that no group holds."""
        return self._policy.free_slots

    @property
    def over_sampled(self) -> int:
        """Number of groups beyond the slots: in flight + ready + training + free = slots + over-sampled."""
        return self._policy.over_sampled

    @property
    def training_slots(self) -> int:
        """Number of slots of groups taken whose weights are not live yet."""
        return self._policy.training_slots

    @property
    def live_version(self) -> PolicyVersion:
        """The newest version that every engine has acknowledged."""
        return self._policy.live_version

    def counters(self) -> dict[str, int | dict[str, int]]:
        """All counters of the ledger; they balance."""
        self._ledger.check(in_flight=self.in_flight, ready=self.ready)
        return self._ledger.snapshot(in_flight=self.in_flight, ready=self.ready)

    async def slot(self) -> None:
        """Wait until a group may be dispatched: a slot is free, and groups are not failing one after the other."""
        await _until(self._slot_freed, lambda: self._policy.dispatchable > 0 and not self._hopeless)

    def dispatch(self) -> tuple[int, int]:
        """Dispatch a group; returns id and deadline. Call it only after :meth:`slot`, with no ``await`` in between."""
        group_id = self._ledger.dispatched
        deadline = self._policy.dispatch(group_id)
        self._ledger.dispatched += 1
        self._in_flight.add(group_id)
        return group_id, deadline

    def offer(self, group: RolloutGroup) -> FilterDecision:
        """Take in a scored group: keep it for a batch, or drop it and free its slot at once."""
        decision = self._filter.decide(group)
        self._over_sampling.observe(decision)
        self._policy.over_sampling = self._over_sampling.factor
        self._end(group.id)
        self._failures_in_a_row.clear()
        if decision.keep:
            self._ready[group.id] = group
            self._policy.keep(group.id)
        else:
            self._ledger.dropped[decision.reason] += 1
            self._dropped_since_batch[decision.reason] += 1
            self._free(group.id)
        self._slot_freed.set()  # the over-sampling factor may have grown
        return decision

    def pass_rate(self, group: RolloutGroup) -> float:
        """Where the group stands in the range that is trained: 0 where all responses are wrong, 1 where all are right."""
        return self._filter.pass_rate(group)

    def drop_surplus(self) -> dict[int, RolloutGroup | None]:
        """Drop groups that over-sampling need not have dispatched; returns them by id, with None for those in flight.

        Those in flight have ended as far as this queue is concerned: they may no longer be offered or failed.
        """
        dropped = {group_id: self._ready.pop(group_id, None) for group_id in self._policy.surplus()}
        for group_id, group in dropped.items():
            if group is None:
                self._end(group_id)
            self._ledger.dropped[SURPLUS] += 1
            self._free(group_id)
        return dropped

    async def late(self) -> frozenset[int]:
        """Wait until the trainer waits for groups in flight although P groups are ready; returns those groups."""
        while True:
            if self._held_up and isinstance(waiting := self._policy.select(), Waiting) and waiting.late:
                self._held_up = False
                return frozenset(waiting.late)
            self._held_up_changed.clear()
            await self._held_up_changed.wait()

    def fail(self, group_id: int, reason: str, message: str) -> None:
        """Count a group that could not be made and free its slot. The caller keeps its prompt."""
        self._end(group_id)
        if reason != ENGINE_DIED:  # the pool limits how often engines may die
            self._failures_in_a_row.append((reason, f"group {group_id}: {message}"))
        self._ledger.failed[reason] += 1
        self._free(group_id)

    async def take(self, step: int) -> TrainBatch:
        """Wait for exactly P groups that the staleness contract allows, and take them.

        Raises :class:`BatchStarvation` when too many groups were dropped or failed on the way, or when nothing has
        ended for ``stall_timeout`` seconds.
        """
        while not self._policy.available:
            self._diagnose()
            self._held_up = self._policy.ready >= self._policy.batch_size
            self._held_up_changed.set()
            self._group_ended.clear()
            try:
                async with asyncio.timeout(self._stall_timeout):
                    await self._group_ended.wait()
            except TimeoutError:
                waiting = self._waiting()
                raise BatchStarvation(
                    f"step {step}: no group has ended for {self._stall_timeout:g} s ({waiting.reason}); "
                    f"{self._who_is_late(waiting)}"
                ) from None
            finally:
                self._held_up = False
        chosen = self._policy.select()
        assert not isinstance(chosen, Waiting)
        groups = tuple(self._ready[group_id] for group_id in chosen)
        version = self._policy.take(groups)
        for group_id in chosen:
            del self._ready[group_id]
        self._ledger.training += len(groups)
        self._dropped_since_batch.clear()
        self._ledger.check(in_flight=self.in_flight, ready=self.ready)
        return TrainBatch(step=step, version=version, groups=groups)

    def trained(self, batch: TrainBatch) -> None:
        """Take note that the batch has been trained; its slots stay held until its successor weights are live."""
        self._ledger.training -= len(batch.groups)
        self._ledger.trained += len(batch.groups)

    def publication_live(self, version: PolicyVersion) -> None:
        """Free the slots of the batch that made ``version``, with which every engine generates now."""
        self._policy.publication_live(version)
        self._slot_freed.set()

    def rewind(self, steps: int) -> Ledger:
        """Give up all groups held, and count ``steps`` trained batches as undone.

        Returns the counters for the queue that takes the place of this one.
        """
        undone = min(steps * self._policy.batch_size, self._ledger.trained)
        self._ledger.rewind(undone, held=self.in_flight + self.ready)
        self._in_flight.clear()
        self._ready.clear()
        return self._ledger

    def _end(self, group_id: int) -> None:
        self._in_flight.remove(group_id)
        self._group_ended.set()

    def _free(self, group_id: int) -> None:
        self._policy.drop(group_id)
        self._slot_freed.set()

    def _who_is_late(self, waiting: Waiting) -> str:
        if not self._in_flight:
            policy = self._policy
            return f"none is in flight, {policy.training_slots} slots wait for version {policy.live_version + 1}"
        late = waiting.late or tuple(sorted(self._in_flight))
        return f"in flight are groups {list(late[:8])}{' and more' if len(late) > 8 else ''}"

    @property
    def _hopeless(self) -> bool:
        """Whether so many groups failed in a row that it is not a single outage: enough for two in every slot."""
        return len(self._failures_in_a_row) >= max(2 * self._policy.over_sampling * self._policy.slots, MIN_FAILURES)

    def _waiting(self) -> Waiting:
        """Why no batch can be taken, which looks at each group."""
        waiting = self._policy.select()
        assert isinstance(waiting, Waiting)
        return waiting

    def _diagnose(self) -> None:
        """Raise when no batch can be expected, because groups only fail or are only dropped."""
        if self._hopeless and not self._in_flight:
            reasons = Counter(reason for reason, _ in self._failures_in_a_row)
            last = "; ".join(message for _, message in self._failures_in_a_row[-3:])
            raise BatchStarvation(
                f"the last {reasons.total()} groups all failed, by reason: {dict(reasons)}; the last ones: {last}"
            )
        dropped = self._dropped_since_batch
        if dropped.total() >= self._max_dropped:
            easy, hard = dropped[ALL_RIGHT], dropped[ALL_WRONG]
            cure = (
                "the problems are too hard for this policy, or no answer is ever recognised: check a few responses and "
                "the answer format, use easier prompts or more samples per prompt"
                if hard >= easy
                else "the problems are too easy for this policy: use harder prompts"
            )
            raise BatchStarvation(
                f"{dropped.total()} groups were dropped while one batch of {self._policy.batch_size} was filled "
                f"({self._waiting().reason}): {easy} all right, {hard} all wrong. {cure}. "
                "algo.max_filtered_batches sets this limit, algo.dynamic_filtering_enable switches the filter off"
            )


async def _until(event: asyncio.Event, condition: Callable[[], bool]) -> None:
    while not condition():
        event.clear()
        await event.wait()
