"""Opens the publisher of a run's transport."""

from __future__ import annotations

import asyncio
from typing import TypeAlias, assert_never

import ray

from dapo_openrlhf.backend.run.publishers.broadcast import BroadcastPublisher
from dapo_openrlhf.backend.run.publishers.groups import GroupKind, TransferGroups
from dapo_openrlhf.backend.run.publishers.members import LEAVING_SECONDS, Limits
from dapo_openrlhf.backend.run.publishers.object_store import ObjectStorePublisher
from dapo_openrlhf.backend.run.publishers.ranks import Ranks
from dapo_openrlhf.backend.run.publishers.service import EngineService
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.backend.run.workers import Workers
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.ports import WeightPublisher
from dapo_openrlhf.types import PolicyVersion

Publisher: TypeAlias = ObjectStorePublisher | BroadcastPublisher
"""Each is an ``EngineReviver`` too."""

LOOPBACK = "127.0.0.1"


async def open_publisher(config: Config, workers: Workers, *, on_spans: OnSpans) -> Publisher:
    """The publisher of the run's transport, ready for the first publication."""
    timing = config.async_
    # An engine that first finishes its running groups answers only after that.
    later = 0.0 if config.train.partial_rollout_enable else timing.generate_timeout
    timeout = timing.publish_timeout + later
    ranks = Ranks(workers.ranks, timeout=timeout)
    engines = EngineService(workers.engines, timeout=timeout, start_timeout=timing.start_timeout)
    match config.weight_transfer:
        case "object_store":
            return ObjectStorePublisher(ranks, engines, on_spans=on_spans)
        case "nccl" | "gloo" | "ipc":
            kind = GroupKind(transport=config.weight_transfer, workers=config.vllm.tensor_parallel_size)
            groups = await asyncio.to_thread(_groups, kind, timeout)
            limits = Limits(timeout=timeout, leaving=LEAVING_SECONDS + later)
            return BroadcastPublisher(ranks, engines, groups, limits=limits, on_spans=on_spans)
        case other:
            assert_never(other)


def _groups(kind: GroupKind, timeout: float) -> TransferGroups:
    from dapo_openrlhf.backend.transfer.store import StoreHost  # imports torch, which takes seconds

    alone = sum(node["Alive"] for node in ray.nodes()) == 1
    return TransferGroups(StoreHost.at(LOOPBACK if alone else ray.util.get_node_ip_address()), kind, timeout=timeout)


async def publish_once(publisher: WeightPublisher, version: PolicyVersion) -> None:
    """Publish the weights that the engines have started with, as ``version``.

    A parameter of the engine's model that would get no weights, or a shape that does not fit, causes an error here:
    before anything is generated, and not after the first step.
    """
    await publisher.deliver(await publisher.send(version))
