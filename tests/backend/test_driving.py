"""An engine of two workers takes publications: each worker every bucket, from the group or from the actor's memory."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS
from test_buckets import layout_of
from torch import Tensor

from dapo_openrlhf.backend.messages import IncompleteWeights, Meeting, TransferAborted, WeightLayout
from dapo_openrlhf.backend.transfer import buckets
from dapo_openrlhf.backend.transfer.buckets import Unpacking, packed
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.group import Group
from dapo_openrlhf.backend.transfer.store import StoreHost

pytestmark = pytest.mark.real  # imports vLLM

HOST = torch.device("cpu")
TENSORS = {f"layer.{number}": torch.full((100, number + 1), float(number)) for number in range(20)}
LAYOUT = layout_of(TENSORS)
NUMBERS = itertools.count()


class Loading:
    """Keeps what it is given in place of vLLM's reload."""

    problem: IncompleteWeights | None = None

    def __init__(self, model: Any, model_config: Any, layout: WeightLayout) -> None:
        self._unpacking = Unpacking(layout)
        self._checksum = Checksum()
        self._loaded: dict[str, Tensor] = {}
        self.sizes = self._unpacking.sizes
        model.append(self._loaded)

    def take(self, bucket: Tensor) -> None:
        self._checksum.add(bucket)
        self._loaded |= self._unpacking.take(bucket)

    def finish(self) -> int:
        if self.problem is not None:
            raise self.problem
        return self._checksum.value()


class Core:
    """Has two workers, to whom everything goes as bytes, as to processes; an error that one returns is none of its own."""

    def __init__(self, worker: type[Any]) -> None:
        self.engine_core = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(world_size=2)))
        self._threads = ThreadPoolExecutor(max_workers=2)
        self.models: list[list[dict[str, Tensor]]] = [[], []]
        self._workers = [worker() for _ in self.models]
        for rank, (made, model) in enumerate(zip(self._workers, self.models, strict=True)):
            made.rank, made.device = rank, HOST
            made.vllm_config = SimpleNamespace(model_config=None)
            made.model_runner = SimpleNamespace(get_model=lambda model=model: model)

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        sent = pickle.dumps(args)
        assert len(sent) < 10_000, "buckets do not go as bytes"
        calls = [self._threads.submit(getattr(worker, method), *pickle.loads(sent)) for worker in self._workers]
        results = [pickle.loads(pickle.dumps(call.result(HANG_SECONDS))) for call in calls]
        assert not any(isinstance(result, Exception) for result in results), "vLLM would raise something else"
        return results


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    from dapo_openrlhf.backend.transfer.receivers import worker

    monkeypatch.setattr(worker, "Loading", Loading)
    monkeypatch.setattr(worker, "set_current_vllm_config", lambda config: nullcontext())
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 4096)
    return Core(worker.WeightsWorker)


@pytest.fixture
def joined(core: Core) -> Iterator[tuple[StoreHost, int, Group]]:
    """The host, the group's number, and its sender."""
    from dapo_openrlhf.backend.transfer.receivers.driving import join

    host = StoreHost.at("127.0.0.1")
    at = Meeting(kind="gloo", address=host.address, port=host.port, generation=next(NUMBERS), timeout=HANG_SECONDS)
    with ThreadPoolExecutor(max_workers=1) as threads:
        sender: Future[Group] = threads.submit(Group, at, rank=0, size=3, device=HOST)
        join(core, at, 1, 3)
        yield host, at.generation, sender.result(HANG_SECONDS)


def check(core: Core) -> None:
    for model in core.models:
        assert [*model[-1]] == [*TENSORS]
        assert all(torch.equal(model[-1][name], tensor) for name, tensor in TENSORS.items())


def test_every_worker_loads_what_is_in_the_actors_memory(core: Core) -> None:
    from dapo_openrlhf.backend.transfer.receivers.driving import load

    made = list(packed(LAYOUT, TENSORS.items(), HOST))
    expected = Checksum()
    for bucket in made:
        expected.add(bucket)
    phases: list[str] = []
    assert load(core, LAYOUT, [bucket.numpy() for bucket in made], phases.append) == expected.value()
    assert phases == ["preparing its layers", "loading", "processing what it received"]
    check(core)
    with pytest.raises(ValueError, match=r"buckets of \(4096,\) bytes arrived, expected \("):
        load(core, LAYOUT, [made[0].numpy()], phases.append)


def test_every_worker_is_a_member_of_the_group(core: Core, joined: tuple[StoreHost, int, Group]) -> None:
    from dapo_openrlhf.backend.transfer.receivers.driving import receive

    with ThreadPoolExecutor(max_workers=1) as threads:
        sum_sent = threads.submit(joined[2].send, packed(LAYOUT, TENSORS.items(), HOST))
        assert receive(core, LAYOUT, lambda phase: None) == sum_sent.result(HANG_SECONDS)
    check(core)


def test_workers_that_are_told_to_leave_say_so(core: Core, joined: tuple[StoreHost, int, Group]) -> None:
    from dapo_openrlhf.backend.transfer.receivers.driving import join, receive

    host, generation, _ = joined
    host.abort(generation, "trainer rank 0 died")
    with pytest.raises(TransferAborted, match="trainer rank 0 died"):
        receive(core, LAYOUT, lambda phase: None)
    number = next(NUMBERS)
    host.abort(number, "engine 1 died")
    at = Meeting(kind="gloo", address=host.address, port=host.port, generation=number, timeout=HANG_SECONDS)
    with pytest.raises(TransferAborted, match="could not join: engine 1 died"):
        join(core, at, 1, 3)


def test_weights_that_do_not_fit_are_told_as_such(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    from dapo_openrlhf.backend.transfer.receivers.driving import load

    monkeypatch.setattr(Loading, "problem", IncompleteWeights("up as published went into none"))
    with pytest.raises(IncompleteWeights, match="went into none"):
        load(core, LAYOUT, [bucket.numpy() for bucket in packed(LAYOUT, TENSORS.items(), HOST)], lambda phase: None)
