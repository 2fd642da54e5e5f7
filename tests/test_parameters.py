"""Parameters are gathered in buckets: whole, in order, and never more at once than was said."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType

import pytest
import torch

from dapo_openrlhf.backend.parameters import buckets, whole_parameters


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


def test_a_gathered_tensor_is_ready_on_the_stream_that_is_current_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM packs on two streams in turn, and a bucket is gathered on one of them."""
    for name in (
        "deepspeed",
        "deepspeed.runtime",
        "deepspeed.runtime.zero",
        "deepspeed.runtime.zero.partition_parameters",
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[name].GatheredParameters = lambda parameters, enabled: contextlib.nullcontext()  # type: ignore[attr-defined]
    streams = [FakeStream(), FakeStream()]
    used: list[object] = []
    current = streams[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: used.append(stream))
    module = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(4)) for _ in range(4))
    for parameter in module:
        parameter.ds_id, parameter.ds_numel, parameter.ds_shape = 0, 4, (4,)
    tensors = whole_parameters(module, bucket_bytes=1000)
    for turn in range(4):
        current = streams[turn % 2]
        next(tensors)
    gathered = (streams[0], 0)
    assert streams[1].waited == [gathered] * 2
    assert used == [streams[0], streams[1]] * 2
