"""Transfer groups, whose members are threads here: buckets arrive, and whoever waits can be told to leave."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, Literal, get_args

import pytest
import torch
from patience import HANG_SECONDS
from test_buckets import layout_of
from torch import Tensor

from dapo_openrlhf.backend.messages import Meeting, TransferAborted
from dapo_openrlhf.backend.transfer import buckets
from dapo_openrlhf.backend.transfer import checksum as checksums
from dapo_openrlhf.backend.transfer.buckets import Unpacking, packed
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.group import GIVEN_UP, Group
from dapo_openrlhf.backend.transfer.store import StoreHost

pytestmark = pytest.mark.long

HOST = torch.device("cpu")
Kind = Literal["gloo", "shared"]
KINDS = get_args(Kind)
SIZES = (4096, 64, 70_000, 128, 4096)


@pytest.fixture(scope="module")
def host() -> StoreHost:
    return StoreHost.at("127.0.0.1")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=4) as threads:
        yield threads


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKET_BYTES", max(SIZES))


@pytest.fixture(autouse=True)
def _nothing_lasts() -> Iterator[None]:
    """What was given up ends when the other members are gone."""
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == GIVEN_UP:
            thread.join(HANG_SECONDS)
            assert not thread.is_alive()


NUMBERS = count()


def meeting(host: StoreHost, kind: Kind, timeout: float = HANG_SECONDS) -> Meeting:
    return Meeting(kind=kind, address=host.address, port=host.port, generation=next(NUMBERS), timeout=timeout)


def joining(threads: ThreadPoolExecutor, at: Meeting, ranks: range, size: int) -> list[Future[Group]]:
    return [threads.submit(Group, at, rank=rank, size=size, device=HOST) for rank in ranks]


def formed(threads: ThreadPoolExecutor, at: Meeting, size: int) -> list[Group]:
    return [future.result(HANG_SECONDS) for future in joining(threads, at, range(size), size)]


def some_buckets() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (size,), dtype=torch.uint8, generator=generator) for size in SIZES]


def received(group: Group, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    return list(group.receive(sizes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 3])
def test_every_receiver_gets_every_bucket(kind: Kind, size: int, host: StoreHost, threads: ThreadPoolExecutor) -> None:
    sender, *receivers = formed(threads, meeting(host, kind), size)
    for _ in range(2):  # one version after the other
        sent = some_buckets()
        results = [threads.submit(received, receiver) for receiver in receivers]
        checksum = sender.send(iter(sent))
        for result in results:
            found = result.result(HANG_SECONDS)
            assert all(torch.equal(one, other) for one, other in zip(sent, found, strict=True))
            again = Checksum()
            for bucket in found:
                again.add(bucket)
            assert again.value() == checksum


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_received_stays_as_it_is_while_more_arrives(
    kind: Kind, host: StoreHost, threads: ThreadPoolExecutor
) -> None:
    """A model's layers keep views of a bucket until they are complete."""
    sender, receiver = formed(threads, meeting(host, kind), 2)
    sent = [torch.full((4096,), number, dtype=torch.uint8) for number in range(8)]
    result = threads.submit(received, receiver, (4096,) * 8)
    sender.send(iter(sent))
    assert [set(bucket.tolist()) for bucket in result.result(HANG_SECONDS)] == [{number} for number in range(8)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_whose_sender_never_sends_leaves_when_told(
    kind: Kind, host: StoreHost, threads: ThreadPoolExecutor
) -> None:
    at = meeting(host, kind)
    _, receiver, other = formed(threads, at, 3)
    waiting = [threads.submit(received, member) for member in (receiver, other)]
    host.abort(at.generation, "engine 1 died")
    for member in waiting:
        with pytest.raises(TransferAborted, match="engine 1 died"):
            member.result(HANG_SECONDS)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_gives_up_makes_all_leave_and_another_group_works(
    kind: Kind, host: StoreHost, threads: ThreadPoolExecutor
) -> None:
    sender, receiver = formed(threads, meeting(host, kind), 2)
    begun = threading.Event()

    def broken() -> Iterator[Tensor]:
        yield some_buckets()[0]
        begun.set()
        raise ArithmeticError("gathering failed")

    waiting = threads.submit(received, receiver)
    with pytest.raises(ArithmeticError):
        sender.send(broken())
    assert begun.is_set()
    sender.leave("the sender failed")
    with pytest.raises(TransferAborted, match=r"the sender failed|broadcast failed"):
        waiting.result(HANG_SECONDS)
    test_every_receiver_gets_every_bucket(kind, 2, host, threads)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_never_joins_keeps_nobody_waiting(kind: Kind, host: StoreHost, threads: ThreadPoolExecutor) -> None:
    at = meeting(host, kind)
    early = joining(threads, at, range(2), 3)
    host.abort(at.generation, "engine 2 died")
    for member in early:
        with pytest.raises(TransferAborted, match="could not join: engine 2 died"):
            member.result(HANG_SECONDS)
    with pytest.raises(TransferAborted, match=r"could not join: waited 0\.01 s for 2 members to join"):
        Group(meeting(host, kind, timeout=0.01), rank=0, size=2, device=HOST)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_does_not_grow_with_the_number_of_parameters(
    kind: Kind, host: StoreHost, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of the same size, one of eight times as many parameters: as many sums, and as many broadcasts."""

    def done(parameters: int) -> dict[str, int]:
        tensors = {f"layer.{number}": torch.full((16 * 128 // parameters,), 1.0) for number in range(parameters)}
        count = dict.fromkeys(("sum", "broadcast"), 0)

        def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any) -> Any:
                count[name] += 1
                return original(*arguments)

            return counted

        sender, receiver = formed(threads, meeting(host, kind), 2)
        unpacking = Unpacking(layout_of(tensors))
        with monkeypatch.context() as patch:
            patch.setattr(checksums, "bucket_sum", counting("sum", checksums.bucket_sum))
            patch.setattr(Group, "_begin", counting("broadcast", Group._begin))
            result = threads.submit(received, receiver, unpacking.sizes)
            sender.send(packed(layout_of(tensors), tensors.items(), HOST))
            arrived = [tensor for bucket in result.result(HANG_SECONDS) for tensor in unpacking.take(bucket)]
        assert [name for name, _ in arrived] == [*tensors]
        return count

    monkeypatch.setattr(buckets, "BUCKET_BYTES", 4096)
    assert done(16) == done(128) == {"sum": 2, "broadcast": 4}


def test_the_first_reason_to_leave_is_the_one_that_is_told(host: StoreHost) -> None:
    at = meeting(host, "gloo")
    host.abort(at.generation, "the first")
    host.abort(at.generation, "the second")
    with pytest.raises(TransferAborted, match="the first"):
        Group(at, rank=0, size=2, device=HOST)


def test_the_store_listens_at_its_own_address_only(host: StoreHost) -> None:
    import psutil

    own: Callable[..., Any] = psutil.Process().net_connections
    places = [c.laddr.ip for c in own(kind="inet") if c.status == psutil.CONN_LISTEN and c.laddr.port == host.port]
    assert places == ["127.0.0.1"]
