"""Counters of what happened to every dispatched group, which must balance (standard library only)."""

from __future__ import annotations

from collections import Counter

REWOUND = "rewound"
"""Reason for which groups are dropped when the trainer goes back to a checkpoint."""


class LedgerImbalance(AssertionError):
    """A group was lost or counted twice: a defect in this program."""


class Ledger:
    """Counts groups from dispatch to their end.

    ``dispatched = trained + training + dropped(reason) + failed(reason) + in_flight + ready``, asserted by
    :meth:`check` at every step. ``in_flight`` and ``ready`` are counted independently of the rest, by the queue that
    holds the groups, so that the equation can fail.
    """

    def __init__(self) -> None:
        self.dispatched = 0
        self.trained = 0
        self.training = 0
        self.dropped: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def check(self, *, in_flight: int, ready: int) -> None:
        """Raise :class:`LedgerImbalance` unless the counters add up."""
        ended = self.trained + self.training + self.dropped.total() + self.failed.total()
        if self.dispatched != ended + in_flight + ready:
            raise LedgerImbalance(f"groups do not add up: {self.snapshot(in_flight=in_flight, ready=ready)}")

    def rewind(self, undone: int, *, held: int) -> None:
        """Count as dropped what going back to a checkpoint loses, so that every trained group is in the final weights.

        These are the ``undone`` groups that were trained since the checkpoint, those in training, and ``held`` groups,
        in flight or ready.
        """
        self.dropped[REWOUND] += undone + self.training + held
        self.trained -= undone
        self.training = 0

    def snapshot(self, *, in_flight: int, ready: int) -> dict[str, int | dict[str, int]]:
        """All counters, as they go into ``summary.json``."""
        return {
            "dispatched": self.dispatched,
            "trained": self.trained,
            "training": self.training,
            "dropped": dict(self.dropped),
            "failed": dict(self.failed),
            "in_flight": in_flight,
            "ready": ready,
        }
