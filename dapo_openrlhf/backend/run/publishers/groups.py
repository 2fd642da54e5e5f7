"""Transfer groups, seen from the controller: formed of the living, and formed anew when one is lost or comes back."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dapo_openrlhf.backend.messages import Meeting
from dapo_openrlhf.backend.run.publishers.ranks import Ranks
from dapo_openrlhf.config.transports import TransportName

if TYPE_CHECKING:
    from dapo_openrlhf.backend.transfer.store import StoreHost


def engine_name(index: int) -> str:
    """An engine's name in messages."""
    return f"engine {index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKind:
    """How groups are made up."""

    transport: TransportName
    workers: int
    """Number of an engine's worker processes."""

    @property
    def in_pairs(self) -> bool:
        """Whether each engine has a group with the rank on its GPU; otherwise all are in one group with rank 0."""
        return self.transport == "ipc"


class TransferGroups:
    """The groups that the next broadcast uses."""

    def __init__(self, host: StoreHost, kind: GroupKind, *, timeout: float) -> None:
        """``timeout``: seconds for joining and for each wait of a transfer."""
        self._host = host
        self._kind = kind
        self._timeout = timeout
        self._numbers = itertools.count()
        self._current: list[int] = []
        self._members: Mapping[int, Any] = {}

    def consist_of(self, engines: Mapping[int, Any]) -> bool:
        """Whether exactly these engines' actors are members, and none was lost since the groups were formed."""
        return bool(engines) and self._members == engines

    def joining(self, ranks: Ranks, engines: Mapping[int, Any]) -> dict[str, Awaitable[Any]]:
        """Call trainer ranks and engines to form groups in place of the current ones; returns their calls by name."""
        self.dissolve()
        senders = {index: index for index in engines} if self._kind.in_pairs else dict.fromkeys(engines, 0)
        meetings = {sender: self._meeting() for sender in sorted(set(senders.values()))}
        calls: dict[str, Awaitable[Any]] = {}
        for sender, (name, rank) in enumerate(zip(ranks.names, ranks.actors, strict=True)):
            receivers = [index for index in engines if senders[index] == sender]
            size = 1 + self._kind.workers * len(receivers)
            calls[name] = (
                rank.join_transfer.remote(meetings[sender], size) if receivers else rank.leave_transfer.remote()
            )
            for place, index in enumerate(receivers):
                first = 1 + self._kind.workers * place
                calls[engine_name(index)] = engines[index].join_transfer.remote(meetings[sender], first, size)
        return calls

    def formed(self, engines: Mapping[int, Any]) -> None:
        """Say that these engines' actors have joined."""
        self._members = dict(engines)

    def dissolve(self) -> None:
        """Use the current groups no more."""
        self._members, self._current = {}, []

    def abort(self, reason: str) -> None:
        """Tell all members to leave, whatever they wait for."""
        for number in self._current:
            self._host.abort(number, reason)
        self.dissolve()

    def _meeting(self) -> Meeting:
        number = next(self._numbers)
        self._current.append(number)
        kind: Any = self._kind.transport
        return Meeting(
            kind=kind,
            address=self._host.address,
            port=self._host.port,
            generation=number,
            timeout=self._timeout,
        )
