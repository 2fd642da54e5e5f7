"""The place where the members of transfer groups meet: a key-value store that the controller hosts (torch).

It is in the controller's process, so that no member's death takes it away. Each group that is formed is a *generation*
with keys of its own, among them one that tells its members to leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # which torch does not re-export

from dapo_openrlhf.backend.meeting import listening_at
from dapo_openrlhf.backend.messages import Meeting

Store: TypeAlias = Any
"""torch's store; its annotations lack methods that are used here."""

ABORT = "abort"
ANSWER_SECONDS = timedelta(seconds=30)
"""Limit of each access to the store, which is a message to another process."""


@dataclass(frozen=True, slots=True)
class StoreHost:
    """The store, at an address where its members reach it."""

    store: Store
    address: str
    port: int

    @classmethod
    def at(cls, address: str) -> StoreHost:
        """Host a store that listens at this address only, on a free port."""
        with listening_at(address, 0) as listening:
            port: int = listening.getsockname()[1]
            store = TCPStore(
                address,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=ANSWER_SECONDS,
                master_listen_fd=listening.detach(),
            )
        return cls(store, address, port)

    def abort(self, generation: int, reason: str) -> None:
        """Tell the members of a generation to leave, whatever they wait for; the first reason is kept."""
        PrefixStore(_prefix(generation), self.store).compare_set(ABORT, "", reason)


def reach(meeting: Meeting) -> Store:
    """The keys of the meeting's generation, seen by a member. Raises ``RuntimeError`` if the host is out of reach."""
    store = TCPStore(meeting.address, meeting.port, is_master=False, wait_for_workers=False, timeout=ANSWER_SECONDS)
    return PrefixStore(_prefix(meeting.generation), store)


def _prefix(generation: int) -> str:
    return f"weights/{generation}"
