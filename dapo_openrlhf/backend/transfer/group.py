"""A member's end of a transfer group: buckets are sent or received in order, and every wait can be given up (torch)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, uint8

from dapo_openrlhf.backend.messages import Meeting, TransferAborted
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.communicators import Communicator, Work, communicator
from dapo_openrlhf.backend.transfer.store import ABORT, Store, reach

POLL_SECONDS = 0.0005
"""Pause between two looks at a broadcast that is under way."""
ABORT_POLL_SECONDS = 0.1
"""Pause between two looks at the key that tells members to leave."""
JOINED = "joined"
GIVEN_UP = "transfer that was given up"
"""Name of a thread that lasts as long as a broadcast that nobody waits for any more."""


class Group:
    """Member ``rank`` of a group: 0 is the sender, a trainer rank; the others are engines' workers.

    A member that leaves early, because it was told to or because a broadcast failed, tells the others. Afterwards the
    group is of no use, and another generation must be formed.
    """

    def __init__(self, meeting: Meeting, *, rank: int, size: int, device: torch.device) -> None:
        """Join. Blocks until all ``size`` members have joined; raises :class:`TransferAborted` if they do not."""
        self._timeout = meeting.timeout
        self._device = device
        self._store: Store = None
        self._communicator: Communicator | None = None
        self._under_way: list[Work] = []
        try:
            self._store = reach(meeting)
            self._gather(size)
            self._communicator = communicator(meeting, self._store, rank, size, device)
        except RuntimeError as error:
            raise self._left(f"member {rank} could not join: {error}") from error

    def _gather(self, size: int) -> None:
        """Wait for all members, because what forms a communicator of some kinds cannot be given up."""
        self._store.add(JOINED, 1)
        self._poll(lambda: self._store.add(JOINED, 0) >= size, f"{size} members to join", pause=0.01)

    def send(self, buckets: Iterable[Tensor]) -> int:
        """Send the buckets and return their checksum. At most two of them are alive at a time."""
        checksum = Checksum()
        previous: Work | None = None
        for bucket in buckets:
            checksum.add(bucket)
            work = self._begin(bucket)
            if previous is not None:
                self._finish(previous)
            previous = work
        if previous is not None:
            self._finish(previous)
        return checksum.value()

    def receive(self, sizes: Sequence[int]) -> Iterator[Tensor]:
        """Yield buckets of these sizes in bytes, each in memory of its own; the next one is under way meanwhile."""
        started: list[tuple[Tensor, Work]] = []
        for number in range(len(sizes)):
            for size in sizes[number + len(started) : number + 2]:
                bucket = torch.empty(size, dtype=uint8, device=self._device)
                started.append((bucket, self._begin(bucket)))
            bucket, work = started.pop(0)
            self._finish(work)
            yield bucket

    def leave(self, reason: str) -> None:
        """Give up what is under way, here and at the other members."""
        self._left(reason)

    def _begin(self, bucket: Tensor) -> Work:
        assert self._communicator is not None
        try:
            work = self._communicator.broadcast(bucket)
        except RuntimeError as error:
            raise self._left(f"a broadcast failed: {error}") from error
        self._under_way.append(work)
        return work

    def _finish(self, work: Work) -> None:
        try:
            self._poll(work.is_completed, "a broadcast to end", pause=POLL_SECONDS)
            work.wait()
        except TransferAborted as error:
            raise self._left(str(error)) from error
        except RuntimeError as error:
            raise self._left(f"a broadcast failed: {error}") from error
        self._under_way.remove(work)

    def _poll(self, ready: Callable[[], bool], what: str, *, pause: float) -> None:
        """Wait until ``ready()``. Raises :class:`TransferAborted` at the deadline, or when told to leave."""
        begun = asked = time.monotonic()
        while not ready():
            now = time.monotonic()
            if now - begun > self._timeout:
                raise TransferAborted(f"waited {self._timeout:g} s for {what}")
            if now - asked > ABORT_POLL_SECONDS:
                asked = now
                if self._store.check([ABORT]):
                    raise TransferAborted(self._store.get(ABORT).decode())
            time.sleep(pause)

    def _left(self, reason: str) -> TransferAborted:
        """Leave the group, and return the error to raise."""
        if self._store is not None:
            try:
                self._store.compare_set(ABORT, "", reason)
            except RuntimeError:
                self._store = None  # the controller is gone, and with it the run
        if self._communicator is not None:
            self._communicator.abort()
            ending = self._communicator, self._under_way
            threading.Thread(target=_outlast, args=ending, daemon=True, name=GIVEN_UP).start()
            self._communicator = None
        return TransferAborted(reason)


def _outlast(communicator: Communicator, under_way: Sequence[Work]) -> None:
    """Keep a group that was given up until its broadcasts have ended: gloo's destructor would wait for them."""
    while not all(work.is_completed() for work in under_way):
        time.sleep(ABORT_POLL_SECONDS)
    del communicator
