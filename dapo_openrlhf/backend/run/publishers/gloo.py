"""Weight sync by gloo, seen from the controller: the same as by NCCL, with another communicator."""

from __future__ import annotations

from typing import Any

from dapo_openrlhf.backend.run.publishers.nccl import NcclPublisher


class GlooPublisher(NcclPublisher):
    """A ``WeightPublisher`` for CPU machines."""

    @staticmethod
    def _meet(rank: Any) -> Any:
        return rank.open_gloo
