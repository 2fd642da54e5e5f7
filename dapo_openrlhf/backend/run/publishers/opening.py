"""Opens the publisher of a run's transport, and determines who replaces lost engines."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from dapo_openrlhf.backend.run.publishers.gloo import GlooPublisher
from dapo_openrlhf.backend.run.publishers.ipc import IpcPublisher
from dapo_openrlhf.backend.run.publishers.nccl import NcclPublisher
from dapo_openrlhf.backend.run.publishers.object_store import ObjectStorePublisher
from dapo_openrlhf.backend.run.publishers.parties import Parties
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.backend.run.workers import Workers
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.transports import TRANSPORTS
from dapo_openrlhf.pipeline.ports import EngineReviver, WeightPublisher
from dapo_openrlhf.types import PolicyVersion

Publisher: TypeAlias = ObjectStorePublisher | NcclPublisher | IpcPublisher


async def open_publisher(config: Config, workers: Workers, *, on_spans: OnSpans) -> Publisher:
    """The publisher of the run's transport, ready for the first publication."""
    timing = config.async_
    # An engine that first finishes its running groups answers only after that.
    timeout = timing.publish_timeout + (0 if config.train.partial_rollout_enable else timing.generate_timeout)
    parties = Parties(workers.ranks, [engine.actor for engine in workers.engines], timeout=timeout)
    match config.weight_transfer:
        case "nccl":
            workers_per_engine = config.vllm.tensor_parallel_size
            return await NcclPublisher.open(parties, workers_per_engine=workers_per_engine, on_spans=on_spans)
        case "gloo":
            workers_per_engine = config.vllm.tensor_parallel_size
            return await GlooPublisher.open(parties, workers_per_engine=workers_per_engine, on_spans=on_spans)
        case "ipc":
            return await IpcPublisher.open(parties, on_spans=on_spans)
        case "object_store":
            return ObjectStorePublisher(
                workers.ranks,
                workers.engines,
                timeout=timeout,
                start_timeout=timing.start_timeout,
                on_spans=on_spans,
            )
        case other:
            assert_never(other)


async def publish_once(publisher: WeightPublisher, version: PolicyVersion) -> None:
    """Publish the weights that the engines have started with, as ``version``.

    A parameter of the engine's model that would get no weights, or a shape that does not fit, causes an error here:
    before anything is generated, and not after the first step.
    """
    await publisher.deliver(await publisher.send(version))


def reviver_of(publisher: Publisher) -> EngineReviver:
    """The publisher itself if its transport can reach a new engine; otherwise a reviver that ends the run."""
    return publisher if isinstance(publisher, ObjectStorePublisher) else Irreplaceable()


class Irreplaceable:
    """An ``EngineReviver`` for transports that reach only the engines that were there from the start."""

    async def revive(self, engine: int) -> None:
        """End the run. Raises ``RuntimeError`` with the ways to continue."""
        others = " or ".join(name for name, transport in TRANSPORTS.items() if transport.revives)
        raise RuntimeError(
            f"engine {engine} is lost, and on this way of the weights (vllm.sync_backend) engines are not replaced one by "
            f"one: go on from the last checkpoint with --resume, or use vllm.sync_backend {others}"
        )
