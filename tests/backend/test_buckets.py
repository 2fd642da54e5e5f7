"""A publication's tensors in buckets: bounded, complete, the same at both ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.transfer import buckets
from dapo_openrlhf.backend.transfer.buckets import ALIGNMENT, Piece, Unpacking, bucket_bytes, packed, plan

HOST = torch.device("cpu")
Named = dict[str, Tensor]


def layout_of(named: Named) -> WeightLayout:
    return WeightLayout(
        names=tuple(named),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in named.values()),
        shapes=tuple(tuple(tensor.shape) for tensor in named.values()),
        sizes=tuple(tensor.nbytes for tensor in named.values()),
    )


@pytest.fixture
def named() -> Named:
    return {
        "a": torch.arange(6.0).view(2, 3).t(),
        "large": torch.arange(1000).bfloat16().view(10, 100),
        "none": torch.empty(0, 4),
        "b": torch.arange(40).bfloat16(),
        "c": torch.tensor([7], dtype=torch.int8),
        "scale": torch.tensor(2.5),
    }


def test_a_plan_by_hand() -> None:
    """Buckets of 128 bytes: 70 and 50 do not fit together, 300 is divided, and 10 goes beside its end of 44."""

    def whole(tensor: int, offset: int, size: int) -> Piece:
        return Piece(tensor=tensor, begin=0, offset=offset, size=size)

    divided = [Piece(tensor=2, begin=begin, offset=0, size=size) for begin, size in ((0, 128), (128, 128), (256, 44))]
    assert plan((70, 50, 300, 10), 130) == (
        (whole(0, 0, 70),),
        (whole(1, 0, 50),),
        (divided[0],),
        (divided[1],),
        (divided[2], whole(3, 64, 10)),
    )
    assert plan((70, 50, 300, 10)) == ((whole(0, 0, 70), whole(1, 128, 50), whole(2, 192, 300), whole(3, 512, 10)),)
    assert plan(()) == ()


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 700))
def test_every_byte_is_in_one_place_and_no_bucket_is_larger_than_the_limit(sizes: list[int], limit: int) -> None:
    limit = max(limit, ALIGNMENT)
    found = plan(sizes, limit)
    assert all(0 < bucket_bytes(bucket) <= limit or sum(piece.size for piece in bucket) == 0 for bucket in found)
    for bucket in found:
        ends = [0, *(piece.offset + piece.size for piece in bucket)]
        assert all(
            piece.offset >= end and piece.offset % ALIGNMENT == 0 for piece, end in zip(bucket, ends, strict=False)
        )
    pieces = [piece for bucket in found for piece in bucket]
    for tensor, size in enumerate(sizes):
        own = [piece for piece in pieces if piece.tensor == tensor]
        assert [piece.begin for piece in own] == [sum(p.size for p in own[:i]) for i in range(len(own))]
        assert sum(piece.size for piece in own) == size
        assert len(own) == 1 or size > limit // ALIGNMENT * ALIGNMENT, "only what is larger than a bucket is divided"


@pytest.mark.parametrize("limit", [64, 100, 1000, 1 << 20])
def test_what_is_unpacked_is_what_was_packed(named: Named, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKET_BYTES", limit)
    layout = layout_of(named)
    unpacking = Unpacking(layout)
    made = list(packed(layout, named.items(), HOST))
    assert tuple(len(bucket) for bucket in made) == unpacking.sizes
    found = [tensor for bucket in made for tensor in unpacking.take(bucket)]
    assert unpacking.complete
    assert [name for name, _ in found] == [*named]
    for name, tensor in found:
        assert (tensor.dtype, tensor.shape) == (named[name].dtype, named[name].shape)
        assert torch.equal(tensor, named[name])


def test_bytes_that_hold_nothing_are_the_same_at_every_rank(named: Named) -> None:
    layout = layout_of(named)
    (one,), (other,) = (list(packed(layout, named.items(), HOST)) for _ in range(2))
    assert torch.equal(one, other)
    held = sum(layout.sizes)
    assert len(one) > held and int((one != 0).sum()) <= held


def test_parameters_are_exhausted_because_gathering_them_takes_every_rank() -> None:
    ended = []

    def parameters() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(1)
        ended.append(True)

    list(packed(layout_of({"a": torch.zeros(1)}), parameters(), HOST))
    assert ended


@pytest.mark.parametrize(
    "come",
    [{"b": torch.zeros(2)}, {"a": torch.zeros(3)}, {"a": torch.zeros(2), "b": torch.zeros(1)}],
    ids=["another name", "another size", "one more"],
)
def test_tensors_that_are_not_those_of_the_layout_are_refused(come: Named) -> None:
    with pytest.raises(ValueError, match=r"came where the layout has a of 8|b is not in the layout of 1 tensors"):
        list(packed(layout_of({"a": torch.zeros(2)}), come.items(), HOST))
