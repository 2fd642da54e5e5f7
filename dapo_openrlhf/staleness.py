"""The staleness contract (layer 0: standard library only).

*Policy version* ``v`` counts weight publications. One rollout step takes one batch of ``P`` groups, trains on it
and publishes once. A group's *policy age* is the trainer's version when its batch is taken minus the version that
sampled its first token.

    **Contract: every trained group has age <= K = max_staleness.**

How it is held
--------------
A *slot* is the right to have one more group between dispatch and live weights; there are ``(K + 1) * P``. A dropped
or failed group frees its slot at once, a trained group only after the weights it helped to make are live in every
engine. A group dispatched while version ``v`` is live gets the *deadline* ``v + K``: the last trainer version whose
batch may hold it. Batches are taken earliest deadline first (ties: order of dispatch), and the batch at version ``x``

1. contains every untaken group whose deadline is ``x``, and
2. may be taken only if afterwards, for each ``j = 1 .. K``, at most ``j * P`` untaken groups have a deadline of
   ``x + j`` or earlier.

Why it is enough
----------------
Let batch ``x`` be the next to be taken and ``v <= x`` the live version. Groups of the ``x - v`` batches taken but not
yet live hold ``(x - v) * P`` slots, so at most ``(v + K - x + 1) * P`` groups are untaken; all have deadlines of at
most ``v + K``, and exactly ``v + K - x + 1`` batches remain until then. Together with rule 2, which carries the same
bound for every earlier deadline from batch to batch, at most ``P`` groups are ever due at ``x``: rule 1 can always be
met. And nothing waits for ever: once no group is in flight, taking the P earliest deadlines satisfies both rules.
(Completion order breaks the bound: in simulation ages reach 12 for K = 1.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dapo_openrlhf.types import PolicyVersion, RolloutGroup


class StalenessViolation(AssertionError):
    """The contract would be broken: a defect in this program, never a user's mistake."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why no batch can be taken yet, in words, and the groups in flight it waits for (may be empty)."""

    reason: str
    late: tuple[int, ...] = ()


class StalenessPolicy:
    """Slots, deadlines, and which finished groups the next batch may hold.

    Knows groups by id only. ``batch_size`` is P >= 1, ``max_staleness`` is K >= 0.
    """

    def __init__(self, *, batch_size: int, max_staleness: int) -> None:
        if batch_size < 1 or max_staleness < 0:
            raise ValueError(f"need batch_size >= 1 and max_staleness >= 0, got {batch_size} and {max_staleness}")
        self.batch_size = batch_size
        self.max_staleness = max_staleness
        self.trainer_version = PolicyVersion(0)
        self.live_version = PolicyVersion(0)
        self._deadlines: dict[int, int] = {}  # untaken groups, in order of dispatch
        self._slots_held: dict[int, int] = {}  # batch taken at version -> slots until version + 1 is live

    @property
    def slots(self) -> int:
        """All slots, (K + 1) * P."""
        return (self.max_staleness + 1) * self.batch_size

    @property
    def free_slots(self) -> int:
        """Groups that may be dispatched now."""
        return self.slots - len(self._deadlines) - sum(self._slots_held.values())

    @property
    def training_slots(self) -> int:
        """Slots of groups taken whose successor weights are not live yet."""
        return sum(self._slots_held.values())

    def dispatch(self, group_id: int) -> int:
        """Give the group a slot and return its deadline, a trainer version. Raises when no slot is free."""
        if self.free_slots < 1:
            raise StalenessViolation(f"group {group_id} dispatched without a free slot of {self.slots}")
        if group_id in self._deadlines:
            raise StalenessViolation(f"group {group_id} dispatched twice")
        deadline = self.live_version + self.max_staleness
        self._deadlines[group_id] = deadline
        return deadline

    def drop(self, group_id: int) -> None:
        """Free the slot of a group that will not be trained."""
        del self._deadlines[group_id]

    def select(self, ready: Collection[int]) -> tuple[int, ...] | Waiting:
        """The P groups the next batch takes, earliest deadline first, or why none can be taken yet.

        ``ready`` are the finished, kept groups. Pure: changes nothing.
        """
        if len(ready) < self.batch_size:
            return Waiting(f"{len(ready)} of {self.batch_size} groups ready")
        # In order of dispatch deadlines never decrease, because the live version never does: already earliest first.
        chosen = [group_id for group_id in self._deadlines if group_id in ready][: self.batch_size]
        left = self._deadlines.keys() - chosen
        for j in range(self.max_staleness + 1):
            due = [group_id for group_id in left if self._deadlines[group_id] <= self.trainer_version + j]
            if len(due) > j * self.batch_size:
                late = tuple(sorted(group_id for group_id in due if group_id not in ready))
                return Waiting(f"groups due by version {self.trainer_version + j} are still in flight", late)
        return tuple(chosen)

    def take(self, groups: Iterable[RolloutGroup]) -> PolicyVersion:
        """Consume one batch and return the trainer version it was taken at. Asserts the contract, always."""
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
            del self._deadlines[group.id]
        overdue = [group_id for group_id, deadline in self._deadlines.items() if deadline <= version]
        if overdue:
            raise StalenessViolation(f"groups {overdue} were due at version {version} and are not in its batch")
        self._slots_held[version] = len(groups)
        self.trainer_version = PolicyVersion(version + 1)
        return version

    def publication_live(self, version: PolicyVersion) -> None:
        """Version ``version`` is live in every engine: frees the slots of the batches that made it."""
        if version != self.live_version + 1 or version > self.trainer_version:
            raise StalenessViolation(
                f"version {version} cannot go live after {self.live_version} with {self.trainer_version} trained"
            )
        self.live_version = version
        del self._slots_held[version - 1]
