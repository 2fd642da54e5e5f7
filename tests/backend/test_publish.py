"""Publications between GPUs: few calls, checked acknowledgements, and errors that say who is late and where."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_actors import FakeActor, Method
from patience import HANG_SECONDS
from virtual_time import run_virtual

from dapo_openrlhf.backend.messages import StagedWeights, WeightAck, WeightLayout
from dapo_openrlhf.backend.run.calls import PipelineTimeout
from dapo_openrlhf.backend.run.publishers.ipc import IpcPublisher
from dapo_openrlhf.backend.run.publishers.nccl import NcclPublisher
from dapo_openrlhf.backend.run.publishers.parties import Parties
from dapo_openrlhf.types import PolicyVersion

LAYOUT = WeightLayout(names=("a", "b"), dtypes=("bfloat16",) * 2, shapes=((2, 3), (4,)), sizes=(12, 8))
CHECKSUM = 77


def rank(index: int = 0, checksum: int = CHECKSUM) -> FakeActor:
    return FakeActor(
        weight_layout=lambda: LAYOUT,
        transfer_address=lambda: ("10.0.0.1", 4242),
        open_nccl=lambda address, port, size: None,
        open_ipc=lambda: None,
        broadcast_weights=lambda: checksum if index == 0 else None,
        stage_weights=lambda: StagedWeights(checksum=checksum, handles={f"GPU-{index}": (index,)}),
    )


def engine(checksum: int = CHECKSUM, receive: Callable[..., Any] | None = None) -> FakeActor:
    return FakeActor(
        join_transfer=lambda info: None,
        receive_weights=receive or (lambda version, info: WeightAck(version=version, checksum=checksum, spans=())),
        phase=lambda: "receiving",
    )


async def nccl(
    ranks: list[FakeActor], engines: list[FakeActor], *, workers: int = 1, timeout: float = HANG_SECONDS
) -> NcclPublisher:
    parties = Parties(ranks, engines, timeout=timeout)
    return await NcclPublisher.open(parties, workers_per_engine=workers, on_spans=lambda spans: None)


async def ipc(ranks: list[FakeActor], engines: list[FakeActor]) -> IpcPublisher:
    return await IpcPublisher.open(Parties(ranks, engines, timeout=HANG_SECONDS), on_spans=lambda spans: None)


async def publish(opening: Awaitable[NcclPublisher | IpcPublisher], version: int = 1) -> tuple[int, int]:
    publisher = await opening
    publication = await publisher.send(PolicyVersion(version))
    await publisher.deliver(publication)
    return publication.bytes, publication.checksum


def test_nccl_ranks_are_the_sender_and_then_every_worker() -> None:
    ranks, engines = [rank(0), rank(1)], [engine(), engine()]
    assert asyncio.run(publish(nccl(ranks, engines, workers=4))) == (20, CHECKSUM)
    assert ranks[0].named("open_nccl") == [("10.0.0.1", 4242, 9)]
    assert not ranks[1].named("open_nccl")
    infos = [actor.named("join_transfer")[0][0] for actor in engines]
    assert [info["rank_offset"] for info in infos] == [1, 5]
    assert all((info["world_size"], info["master_port"], info["packed"]) == (9, 4242, True) for info in infos)


def test_every_rank_takes_part_in_gathering() -> None:
    ranks = [rank(0), rank(1)]
    asyncio.run(publish(nccl(ranks, [engine()])))
    assert [len(actor.named("broadcast_weights")) for actor in ranks] == [1, 1]


def test_ipc_hands_every_gpus_memory_to_every_engine_in_one_call() -> None:
    ranks, engines = [rank(0), rank(1)], [engine(), engine()]
    assert asyncio.run(publish(ipc(ranks, engines))) == (20, CHECKSUM)
    for actor in engines:
        ((version, info),) = actor.named("receive_weights")
        assert version == 1
        assert info["ipc_handles"] == {"GPU-0": (0,), "GPU-1": (1,)}
        assert (info["tensor_sizes"], info["names"]) == ([12, 8], ["a", "b"])


def test_ipc_lets_the_trainer_go_before_engines_load() -> None:
    async def lives() -> None:
        loading = asyncio.Event()

        async def receive(version: int, info: Any) -> WeightAck:
            await loading.wait()
            return WeightAck(version=version, checksum=CHECKSUM, spans=())

        publisher = await ipc([rank()], [engine(receive=receive)])
        publication = await publisher.send(PolicyVersion(1))  # does not wait for the engine
        loading.set()
        await publisher.deliver(publication)

    asyncio.run(lives())


@pytest.mark.parametrize("make", [nccl, ipc])
def test_another_checksum_is_refused_and_names_the_engine(make: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=r"engine 1 acknowledged version 1 with checksum 0x0*4e, .* 0x0*4d was sent"):
        asyncio.run(publish(make([rank()], [engine(), engine(checksum=CHECKSUM + 1)])))


def test_ranks_that_differ_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"trainer ranks hold different weights of version 1.*'trainer rank 1': 78"):
        asyncio.run(publish(ipc([rank(0), rank(1, CHECKSUM + 1)], [engine(), engine()])))


def test_a_late_engine_is_named_with_what_it_is_doing() -> None:
    async def never(version: int, info: Any) -> WeightAck:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(PipelineTimeout) as caught:
        run_virtual(publish(nccl([rank()], [engine(), engine(receive=never)], timeout=600)))
    message = str(caught.value)
    assert (
        "broadcasting the weights of version 1: engine 1 did not answer within 600 s (async.publish_timeout)" in message
    )
    assert message.endswith("engine 0: receiving\n  engine 1: receiving")


def test_an_engines_error_ends_the_publication_at_once() -> None:
    async def broken(version: int, info: Any) -> WeightAck:
        raise ValueError("no room")

    async def forever() -> int:
        await asyncio.Event().wait()
        raise AssertionError

    sender = rank()
    sender.broadcast_weights = Method("broadcast_weights", sender.calls, forever)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no room"):
        run_virtual(asyncio.wait_for(publish(nccl([sender], [engine(receive=broken)], timeout=60)), 5))
