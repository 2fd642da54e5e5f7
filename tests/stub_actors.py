"""Actors that only say where they are, with the methods that starting and publishing call."""

from __future__ import annotations

from typing import Any

import ray

Place = tuple[str, tuple[str, ...]]


class StubActor:
    """Takes anything to begin with."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._begun_with = arguments

    def where(self) -> Place:
        """Machine and GPUs."""
        return ray.get_runtime_context().get_node_id(), tuple(map(str, ray.get_gpu_ids()))


class StubEngine(StubActor):
    """Stands for ``EngineActor``."""

    async def ready(self) -> int:
        """At once."""
        return 1


class StubRank(StubActor):
    """Stands for ``PolicyActor``."""

    def get_master_addr_port(self) -> tuple[str, int]:
        """Of nobody."""
        return "127.0.0.1", 1

    def import_packages(self) -> None:
        """Nothing."""

    def start(self, **settings: Any) -> Any:
        """As where flash-attn is missing; tells whom it would have met."""
        from dapo_openrlhf.backend.trainer.reports import RankReady

        world_size, rank, address, _ = self._begun_with
        assert (world_size, address) == (2, None if rank == 0 else "127.0.0.1")
        return RankReady(parameters=1, attention="packed_attention")


class StubRewards:
    """Stands for ``RewardPool``."""

    def ready(self) -> list[Any]:
        """Has no workers."""
        return []
