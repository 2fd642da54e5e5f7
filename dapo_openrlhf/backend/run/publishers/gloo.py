"""Weight sync by gloo, as the controller sees it: NCCL's, with another communicator."""

from __future__ import annotations

from typing import Any

from dapo_openrlhf.backend.run.publishers.nccl import NcclPublisher


class GlooPublisher(NcclPublisher):
    """A ``WeightPublisher`` on a CPU."""

    @staticmethod
    def _meet(rank: Any) -> Any:
        return rank.open_gloo
