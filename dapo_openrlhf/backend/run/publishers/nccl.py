"""Publications between GPUs: the trainer's weights to every engine without touching a host's memory.

| publisher | trainer and engines      | ``send`` returns when           | engines pause for            |
|-----------|--------------------------|---------------------------------|------------------------------|
| nccl      | on GPUs of their own     | every engine has the weights    | gathering, broadcast, loading |
| ipc       | share a GPU              | each rank has copied them aside | loading                      |

Between GPUs both sides take part in the same broadcast, so there is nothing to overlap it with but a copy of the whole
model, and the trainer waits for less than an engine's step. On a shared GPU engines read such a copy, because the trainer
would otherwise wait for their running steps. Either way engines keep their requests, and the number of calls depends
neither on parameters nor on their size. A version counts as live when every engine has acknowledged it with the trainer's
checksum. Calls have deadlines; what is late is asked what it is doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from dapo_openrlhf.backend.messages import PACKED, StagedWeights, WeightAck, WeightLayout
from dapo_openrlhf.backend.run.calls import PipelineTimeout, all_within
from dapo_openrlhf.backend.run.remote_trainer import OnSpans
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.types import PolicyVersion

ASKING_SECONDS = 10.0
"""How long a late engine is given to say what it is doing."""

SETTING = "async.publish_timeout"


class NcclPublisher:
    """One broadcast from rank 0 to the workers of all engines. A ``WeightPublisher`` and ``EngineReviver``."""

    def __init__(
        self,
        ranks: Sequence[Any],
        engines: Sequence[Any],
        *,
        workers_per_engine: int,
        timeout: float,
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        """``workers_per_engine`` is the engines' tensor-parallel size. Call :meth:`open` before anything else."""
        self._ranks = _named("trainer rank", ranks)
        self._engines = _named("engine", engines)
        self._workers = workers_per_engine
        self._timeout = timeout
        self._on_spans = on_spans
        self._layout: WeightLayout | None = None
        self._acks: list[WeightAck] = []

    async def open(self) -> None:
        """Form the group: rank 0 is its first member, engine i's workers follow in order."""
        first = self._ranks["trainer rank 0"]
        asked = {"trainer rank 0": first.transfer_address.remote()}
        address, port = (await within(asked, {}, self._timeout, "finding a free port"))["trainer rank 0"]
        self._layout = await _layout(first, self._timeout)
        size = 1 + self._workers * len(self._engines)
        calls = {"trainer rank 0": first.open_nccl.remote(address, port, size)}
        for index, (name, engine) in enumerate(self._engines.items()):
            where = {"master_address": address, "master_port": port, "world_size": size}
            calls[name] = engine.join_transfer.remote({**where, "rank_offset": 1 + self._workers * index, **PACKED})
        await within(calls, self._engines, self._timeout, f"forming the transfer group at {address}:{port}")

    async def send(self, version: PolicyVersion) -> Publication:
        """Broadcast; both sides take part, so all are called at once."""
        assert self._layout is not None
        info = self._layout.update_info()
        calls = {name: engine.receive_weights.remote(version, info) for name, engine in self._engines.items()}
        calls |= {name: rank.broadcast_weights.remote() for name, rank in self._ranks.items()}
        what = f"broadcasting the weights of version {version}"
        results = await within(calls, self._engines, self._timeout, what)
        self._acks = [results[name] for name in self._engines]
        return Publication(version=version, bytes=self._layout.bytes, checksum=results["trainer rank 0"])

    async def deliver(self, publication: Publication) -> None:
        """Check what the engines acknowledged."""
        confirm(publication, dict(zip(self._engines, self._acks, strict=True)))
        self._on_spans(tuple(span for ack in self._acks for span in ack.spans))

    async def revive(self, engine: int) -> None:
        """Raises: a single engine cannot join again."""
        raise _cannot_revive(engine)


class IpcPublisher:
    """Each engine reads the memory of the trainer rank on its GPU. A ``WeightPublisher`` and ``EngineReviver``."""

    def __init__(
        self,
        ranks: Sequence[Any],
        engines: Sequence[Any],
        *,
        timeout: float,
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        """Call :meth:`open` before anything else."""
        self._ranks = _named("trainer rank", ranks)
        self._engines = _named("engine", engines)
        self._timeout = timeout
        self._on_spans = on_spans
        self._layout: WeightLayout | None = None
        self._handles: dict[str, tuple[Any, ...]] = {}

    async def open(self) -> None:
        """Agree on how weights are packed."""
        self._layout = await _layout(self._ranks["trainer rank 0"], self._timeout)
        calls = {name: rank.open_ipc.remote() for name, rank in self._ranks.items()}
        calls |= {name: engine.join_transfer.remote(PACKED) for name, engine in self._engines.items()}
        await within(calls, self._engines, self._timeout, "preparing the transfer on shared GPUs")

    async def send(self, version: PolicyVersion) -> Publication:
        """Copy the weights aside on every GPU; the trainer is free afterwards."""
        assert self._layout is not None
        calls = {name: rank.stage_weights.remote() for name, rank in self._ranks.items()}
        staged: Mapping[str, StagedWeights] = await within(
            calls, {}, self._timeout, f"copying the weights of version {version} aside"
        )
        checksums = {name: weights.checksum for name, weights in staged.items()}
        if len(set(checksums.values())) != 1:
            raise RuntimeError(f"trainer ranks hold different weights of version {version}: checksums {checksums}")
        self._handles = {gpu: handle for weights in staged.values() for gpu, handle in weights.handles.items()}
        checksum = next(iter(checksums.values()))
        return Publication(version=version, bytes=self._layout.bytes, checksum=checksum)

    async def deliver(self, publication: Publication) -> None:
        """Have every engine load the copy on its GPU, and check what each acknowledges."""
        assert self._layout is not None
        info = self._layout.update_info(ipc_handles=self._handles, tensor_sizes=list(self._layout.sizes))
        calls = {n: engine.receive_weights.remote(publication.version, info) for n, engine in self._engines.items()}
        what = f"loading the weights of version {publication.version}"
        acks: Mapping[str, WeightAck] = await within(calls, self._engines, self._timeout, what)
        confirm(publication, acks)
        self._on_spans(tuple(span for ack in acks.values() for span in ack.spans))

    async def revive(self, engine: int) -> None:
        """Raises: a single engine cannot join again."""
        raise _cannot_revive(engine)


def _cannot_revive(engine: int) -> RuntimeError:
    return RuntimeError(
        f"engine {engine} is lost, and on this way of the weights (vllm.sync_backend) engines are not replaced one by one: "
        "go on from the last checkpoint with --resume, or use vllm.sync_backend object_store"
    )


async def _layout(rank: Any, timeout: float) -> WeightLayout:
    asked = {"trainer rank 0": rank.weight_layout.remote()}
    layout: WeightLayout = (await within(asked, {}, timeout, "listing the model's parameters"))["trainer rank 0"]
    return layout


def confirm(publication: Publication, acks: Mapping[str, WeightAck]) -> None:
    """Raise unless every engine has exactly what was sent."""
    for name, ack in acks.items():
        if (ack.version, ack.checksum) != (publication.version, publication.checksum):
            raise RuntimeError(
                f"{name} acknowledged version {ack.version} with checksum {ack.checksum:#018x}, but version "
                f"{publication.version} with checksum {publication.checksum:#018x} was sent: what it received is not what "
                "the trainer holds; run scripts/gpu_check.sh on that machine"
            )


async def within(
    calls: Mapping[str, ray.ObjectRef], engines: Mapping[str, Any], timeout: float, what: str
) -> dict[str, Any]:
    """Results by name. Raises :class:`PipelineTimeout` naming who is late and what each engine says it is doing."""
    try:
        results = await all_within([*calls.values()], [*calls], timeout, what, SETTING)
    except PipelineTimeout as error:
        phases = await _phases(engines)
        if not phases:
            raise
        raise PipelineTimeout(
            "\n".join([str(error), *(f"  {name}: {phase}" for name, phase in phases.items())])
        ) from None
    return dict(zip(calls, results, strict=True))


async def _phases(engines: Mapping[str, Any]) -> dict[str, str]:
    """What each engine says it is doing."""

    async def ask(engine: Any) -> str:
        try:
            phase: str = await asyncio.wait_for(_answer(engine.phase), ASKING_SECONDS)
        except TimeoutError:
            return f"gives no answer within {ASKING_SECONDS:g} s: its process hangs"
        except RayError as error:
            return f"is gone ({type(error).__name__})"
        return phase

    return dict(zip(engines, await asyncio.gather(*map(ask, engines.values())), strict=True))


async def _answer(method: Any) -> str:
    answer: str = await method.remote()
    return answer


def _named(kind: str, actors: Sequence[Any]) -> dict[str, Any]:
    return {f"{kind} {index}": actor for index, actor in enumerate(actors)}
