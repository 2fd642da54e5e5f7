"""What is published is gathered in buckets: whole, in order, together where it belongs together, and ready when it is used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch

from dapo_openrlhf.backend.trainer.parameters import Published, buckets


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([], 10, []),
        ([4, 4, 4], 8, [(0, 2), (2, 3)]),
        ([4, 4, 4], 12, [(0, 3)]),
        ([20, 1, 1], 10, [(0, 1), (1, 3)]),  # one too large goes alone
        ([1, 20, 1], 10, [(0, 1), (1, 2), (2, 3)]),
        ([10], 10, [(0, 1)]),
    ],
)
def test_buckets_hold_at_most_the_limit(sizes: list[int], limit: int, expected: list[tuple[int, int]]) -> None:
    assert list(buckets(sizes, limit)) == expected


def test_buckets_do_not_grow_with_the_number_of_parameters() -> None:
    few, many = [1000] * 10, [1] * 10_000
    assert len(list(buckets(few, 5000))) == len(list(buckets(many, 5000))) == 2


class FakeStream:
    """Notes which events it waits for."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def record_event(self) -> object:
        return self, len(self.waited)

    def wait_event(self, event: object) -> None:
        self.waited.append(event)


def fake_deepspeed(monkeypatch: pytest.MonkeyPatch, gather: Any) -> None:
    for name in (
        "deepspeed",
        "deepspeed.runtime",
        "deepspeed.runtime.zero",
        "deepspeed.runtime.zero.partition_parameters",
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[name].GatheredParameters = gather  # type: ignore[attr-defined]


class FakeModel(torch.nn.Module):
    """As much of a transformers model as a publication asks for; names in its checkpoint by ``_weight_conversions``."""

    config = None
    all_tied_weights_keys: Mapping[str, str] = {}
    _keys_to_ignore_on_save = None
    _weight_conversions: list[Any]


class HalvedModel(FakeModel):
    """Two parameters as they are; a third is two tensors in the checkpoint."""

    def __init__(self) -> None:
        from transformers.core_model_loading import MergeModulelist, WeightConverter

        super().__init__()
        for name in ("one", "two", "halves"):
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(2, 2)))
        self._weight_conversions = [WeightConverter("half.*", "halves", operations=[MergeModulelist(dim=0)])]


class JoinedModel(FakeModel):
    """Two parameters that are one tensor in the checkpoint."""

    def __init__(self) -> None:
        from transformers.core_model_loading import Chunk, WeightConverter

        super().__init__()
        self.left = torch.nn.Parameter(torch.full((4,), 1.0))
        self.right = torch.nn.Parameter(torch.full((4,), 2.0))
        self._weight_conversions = [WeightConverter("joined", ["left", "right"], operations=[Chunk(dim=0)])]


def test_a_gathered_tensor_is_ready_on_the_stream_that_is_current_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM packs on two streams in turn, and a bucket is gathered on one of them."""
    model = HalvedModel()
    for parameter in model.parameters():
        parameter.ds_id, parameter.ds_numel, parameter.ds_shape = 0, 4, tuple(parameter.shape)  # type: ignore[attr-defined]
    publication = Published(model)
    fake_deepspeed(monkeypatch, lambda parameters, enabled: contextlib.nullcontext())
    streams = [FakeStream(), FakeStream()]
    used: list[object] = []
    current = streams[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: used.append(stream))
    tensors = publication.tensors(bucket_bytes=1000)
    names = []
    for turn in range(4):
        current = streams[turn % 2]
        names.append(next(tensors)[0])
    assert names == ["one", "two", "half.0", "half.1"]
    gathered, converted = (streams[0], 0), (streams[0], 2)
    assert streams[0].waited == [gathered, gathered, converted], "its own work, but a stream's own events cost nothing"
    assert streams[1].waited == [gathered, converted], "what another stream gathered, and what another one cut"
    assert used == [streams[0], streams[1], streams[0], streams[0], streams[1]]


def test_what_is_converted_together_is_gathered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the bucket: a conversion needs all its sources whole."""
    together: list[int] = []

    def gather(parameters: list[torch.nn.Parameter], enabled: bool) -> contextlib.nullcontext[None]:
        together.append(len(parameters))
        return contextlib.nullcontext()

    model = JoinedModel()
    for parameter in model.parameters():
        parameter.ds_id, parameter.ds_numel, parameter.ds_shape = 0, 4, tuple(parameter.shape)  # type: ignore[attr-defined]
    publication = Published(model)
    fake_deepspeed(monkeypatch, gather)
    found = dict(publication.tensors(bucket_bytes=1))
    assert together == [2]
    assert found["joined"].tolist() == [1.0] * 4 + [2.0] * 4
