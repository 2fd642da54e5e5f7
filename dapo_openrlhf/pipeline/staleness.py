"""The staleness contract (standard library only).

*Policy version* ``v`` counts weight publications. One rollout step takes one batch of ``P`` groups, trains on it
and publishes once. A group's *policy age*, how far off-policy it is, is the trainer's version when its batch is taken
minus the version that sampled its first token.

    **Contract: every trained group has age <= K = max_staleness.**

How it is held
--------------
A *slot* is the right to have one more group between dispatch and live weights; there are ``(K + 1) * P``. A dropped
or failed group frees its slot at once, a trained group only after the weights it helped to make are live in every
engine. A group dispatched while version ``v`` is live gets the *deadline* ``v + K``: the last trainer version whose
batch may hold it. Deadlines never decrease in order of dispatch, because the live version never does.

Let ``x`` be the trainer's version, whose batch is the next one, and number the untaken groups, in flight or ready,
in order of dispatch from 0. ``d - x + 1`` batches remain for a group with deadline ``d``, so the group at position

    ``i < (d - x + 1) * P`` is **secure**: it can be trained in time, whatever happens to the others.

1. A batch takes the first ``P`` secure groups that are ready: earliest deadline first, ties in order of dispatch.
2. It may be taken only if every other secure group stays secure, at its new position and for ``x + 1``. Until then
   it waits for the groups in flight that would not.

Why this is enough
------------------
A secure group with deadline ``x`` cannot stay secure (no position is below 0), so it is in the batch: nothing secure
is ever trained too late. And while each group in flight has a slot, all are secure: of ``(K + 1) * P`` slots the
``x - v`` batches taken but not yet live hold ``(x - v) * P``, so at most ``(v + K - x + 1) * P`` groups are untaken,
which is just the bound for those dispatched at ``v``, and rule 2 has kept it for those dispatched before. Nothing
waits for ever: once no group is in flight, the first ``P`` groups satisfy both rules. (Completion order breaks the
bound: in simulation ages reach 12 for K = 1.)

Over-sampling
-------------
Where the filter drops many groups, their slots are idle while the batch waits for the remaining ones. With an
over-sampling factor ``f > 1`` a group in flight counts as ``1 / f`` of a slot: about as many groups are dispatched as
it takes for all slots to end with a kept one. The contract does not depend on ``f``. A group is not secure while too
many precede it, and becomes so as they are dropped. Once ``(d - x + 1) * P`` ready groups precede it, it never will: it
is *surplus*, dropped, and counted. Which groups are surplus depends on order of dispatch and on the filter alone, never
on how long a response takes, so that no length is favoured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from dapo_openrlhf.types import PolicyVersion, RolloutGroup


class StalenessViolation(AssertionError):
    """The contract would be broken, which is a defect in this program and never a user's mistake."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why no batch can be taken yet, in words, and the groups in flight that the batch waits for (may be empty)."""

    reason: str
    late: tuple[int, ...] = ()


@dataclass(slots=True)
class _Cohort:
    """The untaken groups with one deadline, which were dispatched one after the other."""

    group_ids: dict[int, None] = field(default_factory=dict)
    """In order of dispatch."""
    ready: int = 0


class StalenessPolicy:
    """Slots, deadlines, and which finished groups the next batch may hold.

    It knows groups by id only. ``batch_size`` is P >= 1, ``max_staleness`` is K >= 0; ``version`` is the trainer's and
    the live version at the start.
    """

    def __init__(self, *, batch_size: int, max_staleness: int, version: int = 0) -> None:
        if batch_size < 1 or max_staleness < 0:
            raise ValueError(f"need batch_size >= 1 and max_staleness >= 0, got {batch_size} and {max_staleness}")
        self.batch_size = batch_size
        self.max_staleness = max_staleness
        self.trainer_version = PolicyVersion(version)
        self.live_version = PolicyVersion(version)
        self._over_sampling = 1.0
        self._deadlines: dict[int, int] = {}  # untaken groups, in order of dispatch
        self._ready: set[int] = set()
        self._cohorts: dict[int, _Cohort] = {}  # the same groups by deadline, earliest first; at most K + 1
        self._slots_held: dict[int, int] = {}  # batch taken at version -> slots until version + 1 is live

    @property
    def slots(self) -> int:
        """Number of all slots, (K + 1) * P."""
        return (self.max_staleness + 1) * self.batch_size

    @property
    def over_sampling(self) -> float:
        """f >= 1: number of groups in flight per slot that they are expected to need."""
        return self._over_sampling

    @over_sampling.setter
    def over_sampling(self, factor: float) -> None:
        if not factor >= 1:
            raise ValueError(f"the over-sampling factor is at least 1, not {factor}")
        self._over_sampling = factor

    @property
    def in_flight(self) -> int:
        """Number of groups between dispatch and their end."""
        return len(self._deadlines) - len(self._ready)

    @property
    def ready(self) -> int:
        """Number of kept groups that wait for a batch."""
        return len(self._ready)

    @property
    def training_slots(self) -> int:
        """Number of slots of groups taken whose successor weights are not live yet."""
        return sum(self._slots_held.values())

    @property
    def free_slots(self) -> int:
        """Number of slots that no group holds."""
        return max(0, self.slots - self.training_slots - self.ready - self.in_flight)

    @property
    def over_sampled(self) -> int:
        """Number of groups beyond the slots: in flight + ready + training + free = slots + over-sampled."""
        return max(0, self.training_slots + self.ready + self.in_flight - self.slots)

    @property
    def dispatchable(self) -> int:
        """Number of groups that may be dispatched now; without over-sampling, that of the free slots."""
        room = self.slots - self.training_slots - self.ready
        return max(0, int(self._over_sampling * room + 1e-9) - self.in_flight)

    def dispatch(self, group_id: int) -> int:
        """Give the group a slot and return its deadline, a trainer version. Raises when no slot is free."""
        if self.dispatchable < 1:
            raise StalenessViolation(f"group {group_id} dispatched without a free slot of {self.slots}")
        if group_id in self._deadlines:
            raise StalenessViolation(f"group {group_id} dispatched twice")
        deadline = self.live_version + self.max_staleness
        self._deadlines[group_id] = deadline
        self._cohorts.setdefault(deadline, _Cohort()).group_ids[group_id] = None
        return deadline

    def keep(self, group_id: int) -> None:
        """Take note that the group is finished and waits for a batch."""
        if group_id not in self._deadlines or group_id in self._ready:
            raise StalenessViolation(f"group {group_id} was kept, but is not in flight")
        self._ready.add(group_id)
        self._cohorts[self._deadlines[group_id]].ready += 1

    def drop(self, group_id: int) -> None:
        """Free the slot of a group that will not be trained."""
        self._remove(group_id)

    def _remove(self, group_id: int) -> None:
        deadline = self._deadlines.pop(group_id)
        cohort = self._cohorts[deadline]
        del cohort.group_ids[group_id]
        if group_id in self._ready:
            self._ready.remove(group_id)
            cohort.ready -= 1
        if not cohort.group_ids:
            del self._cohorts[deadline]

    def surplus(self) -> tuple[int, ...]:
        """Groups in flight or ready that can never be trained in time: enough ready ones precede them. Pure."""
        surplus: list[int] = []
        preceding = 0
        for deadline, cohort in self._cohorts.items():
            excess = preceding + cohort.ready - self._capacity(deadline)
            preceding += cohort.ready - max(0, excess)
            if excess >= 0:
                surplus += reversed(list(self._behind(cohort, excess)))
        return tuple(surplus)

    def _behind(self, cohort: _Cohort, excess: int) -> Iterator[int]:
        """The cohort's groups from the last one on, up to the one before which only ``excess`` ready ones remain."""
        for group_id in reversed(cohort.group_ids):
            if group_id in self._ready:
                if excess == 0:
                    return
                excess -= 1
            yield group_id

    @property
    def available(self) -> bool:
        """Whether a batch can be taken, as :meth:`select` decides; without looking at each group."""
        if self.ready < self.batch_size:
            return False
        position = chosen = left = 0
        possible = True
        for deadline, cohort in self._cohorts.items():
            secure = min(len(cohort.group_ids), max(0, self._capacity(deadline) - position))
            taken = min(self._ready_among_first(cohort, secure), self.batch_size - chosen)
            if taken < secure and left + secure - taken > self._capacity(deadline) - self.batch_size:
                possible = False
            chosen += taken
            position += len(cohort.group_ids)
            left = position - chosen
        return possible and chosen == self.batch_size

    def _ready_among_first(self, cohort: _Cohort, count: int) -> int:
        """Number of ready groups among a cohort's first ``count``."""
        if count == len(cohort.group_ids):
            return cohort.ready
        behind = islice(reversed(cohort.group_ids), len(cohort.group_ids) - count)
        return cohort.ready - sum(group_id in self._ready for group_id in behind)

    def select(self) -> tuple[int, ...] | Waiting:
        """The P groups of the next batch, earliest deadline first, or why none can be taken yet. Pure."""
        if self.ready < self.batch_size:
            return Waiting(f"{self.ready} of {self.batch_size} groups ready")
        positions = {group_id: position for position, group_id in enumerate(self._deadlines)}
        secure = [group_id for group_id in positions if positions[group_id] < self._capacity(self._deadlines[group_id])]
        chosen = [group_id for group_id in secure if group_id in self._ready][: self.batch_size]
        if len(chosen) < self.batch_size:
            last = [position for group_id, position in positions.items() if group_id in self._ready][
                self.batch_size - 1
            ]
            return self._wait_for(group_id for group_id, position in positions.items() if position < last)
        taken = set(chosen)
        passed = 0
        for group_id in secure:
            if group_id in taken:
                passed += 1
            elif positions[group_id] - passed >= self._capacity(self._deadlines[group_id]) - self.batch_size:
                return self._wait_for(g for g in secure if self._deadlines[g] <= self._deadlines[group_id])
        return tuple(chosen)

    def _capacity(self, deadline: int) -> int:
        """Number of groups that the batches up to a deadline can hold."""
        return (deadline - self.trainer_version + 1) * self.batch_size

    def _wait_for(self, group_ids: Iterable[int]) -> Waiting:
        late = tuple(group_id for group_id in group_ids if group_id not in self._ready)
        due = max(self._deadlines[group_id] for group_id in late)
        return Waiting(f"groups due by version {due} are still in flight", late)

    def take(self, groups: Iterable[RolloutGroup]) -> PolicyVersion:
        """Consume one batch and return the trainer version it was taken at. Always asserts the contract."""
        version = self.trainer_version
        groups = tuple(groups)
        if len(groups) != self.batch_size:
            raise StalenessViolation(f"batch of {len(groups)} groups taken, not {self.batch_size}")
        for group in groups:
            age = version - group.oldest_version
            if not 0 <= age <= self.max_staleness:
                raise StalenessViolation(
                    f"group {group.id} has policy age {age} at version {version}, allowed 0 to {self.max_staleness}"
                )
            if group.id not in self._ready:
                raise StalenessViolation(f"group {group.id} was taken, but is not ready")
            self._remove(group.id)
        overdue = [group_id for due, cohort in self._cohorts.items() if due <= version for group_id in cohort.group_ids]
        if overdue:
            raise StalenessViolation(f"groups {overdue} were due at version {version} and are not in its batch")
        self._slots_held[version] = len(groups)
        self.trainer_version = PolicyVersion(version + 1)
        return version

    def publication_live(self, version: PolicyVersion) -> None:
        """Free the slots of the batches that made ``version``, which is live in every engine now."""
        if version != self.live_version + 1 or version > self.trainer_version:
            raise StalenessViolation(
                f"version {version} cannot go live after {self.live_version} with {self.trainer_version} trained"
            )
        self.live_version = version
        del self._slots_held[version - 1]
