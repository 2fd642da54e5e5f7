"""Groups that are too old when they are finished are thrown away, as other trainers do it; for this experiment only.

`python -m scripts.experiments.staleness.dropping train ...` is `dapo-openrlhf train ...` with this in place of the
staleness contract's own waiting. Slots are the same. A batch takes the groups that were finished first and waits for none
in particular; a group that the next batch may no longer hold, in flight or finished, is dropped, and its prompt begun anew.
So what is trained leans towards short responses, and what is dropped was generated in vain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from unittest import mock

from dapo_openrlhf.pipeline.staleness import StalenessPolicy, Waiting
from dapo_openrlhf.types import PolicyVersion, RolloutGroup


class DroppingPolicy(StalenessPolicy):
    """Takes groups in the order in which they were finished, and drops those that became too old."""

    def __init__(self, *, batch_size: int, max_staleness: int, version: int = 0) -> None:
        super().__init__(batch_size=batch_size, max_staleness=max_staleness, version=version)
        self._finished: dict[int, None] = {}  # in the order of their ends

    @property
    def ready(self) -> int:
        """Number of finished groups that a batch may still hold; the others hold no slot."""
        return len(self._young())

    def keep(self, group_id: int) -> None:
        """Take note that the group is finished and waits for a batch."""
        super().keep(group_id)
        self._finished[group_id] = None

    def surplus(self) -> tuple[int, ...]:
        """Groups in flight or finished that are too old for the next batch."""
        return tuple(group for group, deadline in self._deadlines.items() if deadline < self.trainer_version)

    @property
    def available(self) -> bool:
        """Whether enough young groups are finished."""
        return self.ready >= self.batch_size

    def select(self) -> tuple[int, ...] | Waiting:
        """The young groups that were finished first, or how many there are."""
        young = self._young()
        if len(young) < self.batch_size:
            return Waiting(f"{len(young)} of {self.batch_size} groups ready")
        return tuple(islice(young, self.batch_size))

    def take(self, groups: Iterable[RolloutGroup]) -> PolicyVersion:
        """Consume one batch, whatever it leaves behind, and return the trainer version it was taken at."""
        version = self.trainer_version
        for group in groups:
            assert version - group.oldest_version <= self.max_staleness, group
            self._remove(group.id)
        self._slots_held[version] = self.batch_size
        self.trainer_version = PolicyVersion(version + 1)
        return version

    def _young(self) -> list[int]:
        return [group for group in self._finished if self._deadlines[group] >= self.trainer_version]

    def _remove(self, group_id: int) -> None:
        super()._remove(group_id)
        self._finished.pop(group_id, None)


def main() -> int:
    from dapo_openrlhf.__main__ import main as command
    from dapo_openrlhf.backend.run import launch

    with mock.patch.object(launch, "StalenessPolicy", DroppingPolicy):
        return command()


if __name__ == "__main__":
    sys.exit(main())
