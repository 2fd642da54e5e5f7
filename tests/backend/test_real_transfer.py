"""Both ends of a transfer between GPUs, through vLLM's own packing, with the GPU taken away from under it.

Streams become nothing, a broadcast becomes a queue and shared memory a table; what packs, unpacks, sums and loads is real.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS
from torch import Tensor

from dapo_openrlhf.backend import messages
from dapo_openrlhf.backend.messages import PACKED, WeightLayout

pytestmark = pytest.mark.real

GPU = "GPU-1234"


class Stream:
    """Everything is done at once."""

    def __init__(self, device: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class TorchWithoutCuda:
    """torch, whose memory on the GPU lies on the host."""

    cuda = SimpleNamespace(
        Stream=Stream,
        stream=lambda stream: nullcontext(),
        current_stream=Stream,
        get_device_properties=lambda index: SimpleNamespace(uuid=GPU),
    )
    accelerator = SimpleNamespace(current_device_index=lambda: 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: Any, device: Any = None, **settings: Any) -> Tensor:
        return torch.empty(*size, **settings)


class Wire:
    """A communicator: what the sender broadcasts, the receiver takes in the same order."""

    def __init__(self) -> None:
        self.sent = 0
        self._tensors: queue.Queue[Tensor] = queue.Queue(maxsize=1)

    def sender(self) -> SimpleNamespace:
        def broadcast(tensor: Tensor, src: int) -> None:
            self.sent += 1
            self._tensors.put(tensor.clone(), timeout=HANG_SECONDS)

        return SimpleNamespace(broadcast=broadcast)

    def receiver(self) -> SimpleNamespace:
        return SimpleNamespace(broadcast=lambda tensor, src: tensor.copy_(self._tensors.get(timeout=HANG_SECONDS)))


class Model:
    """Keeps what it is given to load."""

    def __init__(self) -> None:
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Any) -> None:
        self.loaded |= {name: tensor.clone() for name, tensor in weights}

    def modules(self) -> list[Any]:
        return []


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM's packing on the host."""
    from vllm.distributed.weight_transfer import packed_tensor

    from dapo_openrlhf.backend.transfer.receivers import ipc, nccl

    shared: dict[int, Tensor] = {}

    def export(tensor: Tensor) -> tuple[None, tuple[int, ...]]:
        shared[len(shared)] = tensor
        return None, (len(shared) - 1, 0, 0, 0, 0, 0, 0)

    monkeypatch.setattr(packed_tensor, "torch", TorchWithoutCuda())
    monkeypatch.setattr(packed_tensor, "reduce_tensor", export)
    monkeypatch.setattr("torch.multiprocessing.reductions.rebuild_cuda_tensor", lambda handle, *rest: shared[handle])
    for name in ("synchronize", "ipc_collect"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for engine in (nccl.NCCLWeightTransferEngine, ipc.IPCWeightTransferEngine):
        monkeypatch.setattr(engine, "start_weight_update", lambda self: None)
    yield
    if hasattr(packed_tensor, "_get_streams"):
        packed_tensor._get_streams.cache_clear()


def weights(count: int) -> dict[str, Tensor]:
    return {f"layer.{index}": torch.randn(index % 3 + 1, 5).bfloat16() for index in range(count)}


def layout(named: dict[str, Tensor]) -> WeightLayout:
    return WeightLayout(
        names=tuple(named),
        dtypes=("bfloat16",) * len(named),
        shapes=tuple(tuple(tensor.shape) for tensor in named.values()),
        sizes=tuple(tensor.numel() * 2 for tensor in named.values()),
    )


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def receiver(kind: str, init: dict[str, Any]) -> Any:
    from dapo_openrlhf.backend.transfer.receivers import ipc, nccl

    engine_class = {"nccl": nccl.CheckedNcclEngine, "ipc": ipc.CheckedIpcEngine}[kind]
    untied = SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=False))
    settings = SimpleNamespace(parallel_config=None, model_config=untied)
    engine = engine_class(None, settings, torch.device("cpu", 0), Model())
    parsed = engine.parse_init_info(init)
    for name in PACKED:  # what 0.29 keeps from the rendezvous
        if hasattr(parsed, name):
            setattr(engine, name, getattr(parsed, name))
    engine.start_weight_update()
    return engine


def broadcast(named: dict[str, Tensor]) -> tuple[Any, int, int]:
    """Send over a wire; returns the receiving engine, the sender's checksum, and how many broadcasts it took."""
    from dapo_openrlhf.backend.transfer.senders.nccl import NcclSender

    wire = Wire()
    sender = NcclSender.__new__(NcclSender)
    sender._group = wire.sender()
    where = {"master_address": "h", "master_port": 1, "rank_offset": 1, "world_size": 2}
    engine = receiver("nccl", {**where, **messages.PACKED})
    engine.model_update_group = wire.receiver()
    update = engine.parse_update_info(layout(named).update_info())
    receiving = threading.Thread(target=engine.receive_weights, args=(update,))
    receiving.start()
    checksum = sender.send(iter(named.items()))
    receiving.join(HANG_SECONDS)
    return engine, checksum, wire.sent


@pytest.mark.parametrize("buffer_bytes", [64, 1 << 20])
def test_what_nccl_broadcasts_arrives_whole(no_gpu: None, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int) -> None:
    monkeypatch.setitem(PACKED, "packed_buffer_size_bytes", buffer_bytes)  # type: ignore[arg-type]
    named = weights(20)
    engine, checksum, sent = broadcast(named)
    assert same(engine.model.loaded, named)
    assert engine.received_checksum() == checksum
    assert (sent > 1) == (buffer_bytes == 64)


def test_broadcasts_do_not_grow_with_the_number_of_parameters(no_gpu: None) -> None:
    assert broadcast(weights(3))[2] == broadcast(weights(300))[2] == 1


def test_a_shared_gpus_weights_are_read_from_one_copy_that_the_next_publication_replaces(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dapo_openrlhf.backend.transfer.senders.ipc import IpcSender

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=GPU))
    sender, engine = IpcSender(), receiver("ipc", dict(PACKED))
    for _ in range(3):
        named = weights(20)
        manifest = layout(named)
        staged = sender.stage(iter(named.items()), size=manifest.bytes)
        assert list(staged.handles) == [GPU]
        expected = {name: tensor.clone() for name, tensor in named.items()}
        for tensor in named.values():
            tensor.zero_()  # the trainer goes on
        update = manifest.update_info(ipc_handles=dict(staged.handles), tensor_sizes=list(manifest.sizes))
        engine.start_weight_update()
        engine.receive_weights(engine.parse_update_info(update))
        assert same(engine.model.loaded, expected)
        assert engine.received_checksum() == staged.checksum
