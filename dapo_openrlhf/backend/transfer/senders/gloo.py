"""The trainer's end of the weight sync by gloo, NCCL's with another communicator (runs on trainer rank 0, on a CPU)."""

from __future__ import annotations

from dapo_openrlhf.backend.transfer.gloo import GlooGroup
from dapo_openrlhf.backend.transfer.senders.nccl import NcclSender


class GlooSender(NcclSender):
    """Rank 0's end of the group that it forms with all engines' workers."""

    def __init__(self, *, address: str, port: int, world_size: int) -> None:
        """Join the group. Blocks until every worker has joined."""
        self._group = GlooGroup(address=address, port=port, rank=0, world_size=world_size)
