"""The checksum of published weights sees every way in which they could differ."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import xxhash
from torch import Tensor

from dapo_openrlhf.backend.transfer import checksum as checksums
from dapo_openrlhf.backend.transfer.checksum import BLOCK, PRIME, Checksum, bits_sum, bucket_sum

Named = list[tuple[str, Tensor]]


def packed_bytes(tensors: Iterable[tuple[str, Tensor]]) -> Tensor:
    """A bucket with these tensors one after the other."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in tensors])


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> int:
    """The sum of a bucket on a device."""
    return int(bits_sum(packed_bytes(tensors)))


@pytest.fixture
def weights() -> Named:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (100, 64), "norm": (64,), "up": (64, 256), "down": (64, 256)}
    return [(name, torch.randn(shape, generator=generator).to(torch.bfloat16)) for name, shape in shapes.items()]


def test_a_sum_by_hand() -> None:
    # 16-bit patterns 1, 2, 3 at places 1, 2, 3: PRIME * (1*1 + 2*2 + 3*3).
    assert int(bits_sum(torch.tensor([1, 2, 3], dtype=torch.int16))) == 14 * PRIME
    # One block of ones: its row sum at place 1 is BLOCK; its columns' sums are 1 at places 1 ... BLOCK, three times.
    ones = torch.ones(BLOCK, dtype=torch.int16)
    assert int(bits_sum(ones)) == PRIME * BLOCK + 3 * PRIME * (BLOCK * (BLOCK + 1) // 2)


def test_a_sum_does_not_depend_on_how_much_is_added_up_at_once(monkeypatch: pytest.MonkeyPatch, weights: Named) -> None:
    whole = checksum(weights)
    monkeypatch.setattr(checksums, "BLOCKS_AT_ONCE", 3)
    assert checksum(weights) == whole


def test_equal_weights_have_equal_sums_wherever_they_lie(weights: Named) -> None:
    copies = [(name, tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()) for name, tensor in weights]
    assert checksum(copies) == checksum(weights)


@pytest.mark.parametrize("name", ["embed", "norm", "up"])
@pytest.mark.parametrize("bit", [0, 15])
def test_one_bit_changes_it(weights: Named, name: str, bit: int) -> None:
    before = checksum(weights)
    dict(weights)[name].view(torch.int16).view(-1)[-1] ^= -(2**15) if bit == 15 else 1
    assert checksum(weights) != before


def test_a_missing_and_an_exchanged_tensor_change_it(weights: Named) -> None:
    names, tensors = zip(*weights, strict=True)
    exchanged = list(zip(names, [*tensors[:2], tensors[3], tensors[2]], strict=True))
    assert len({checksum(weights), checksum(weights[:-1]), checksum(exchanged)}) == 3


def test_exchanged_elements_change_it() -> None:
    matrix = torch.arange(4 * BLOCK, dtype=torch.int16).view(4, BLOCK)
    rows, columns = matrix[[1, 0, 2, 3]], matrix[:, [1, 0, *range(2, BLOCK)]]
    assert len({int(bits_sum(tensor)) for tensor in (matrix, rows, columns)}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64])
def test_any_type_and_odd_sizes(dtype: torch.dtype) -> None:
    tensor = torch.arange(7).to(dtype)
    changed = tensor.clone()
    changed[6] += 1
    assert int(bits_sum(tensor)) != int(bits_sum(changed))
    assert int(bits_sum(torch.empty(0, dtype=dtype))) == 0


def test_buckets_in_host_memory_have_sums_that_depend_on_bytes_and_order(weights: Named) -> None:
    def value(*buckets: Tensor) -> int:
        made = Checksum()
        for bucket in buckets:
            made.add(bucket)
        assert made.buckets == len(buckets)
        return made.value()

    bucket = packed_bytes(weights)
    changed = bucket.clone()
    changed[-1] ^= 1
    assert value(bucket) == value(bucket.clone())
    values = {value(bucket), value(changed), value(bucket, changed), value(changed, bucket), value()}
    assert len(values) == 5
    assert bucket_sum(bucket) == xxhash.xxh3_64_intdigest(bucket.numpy().data)


def test_sums_wrap_instead_of_failing() -> None:
    assert isinstance(checksum([("large", torch.full((3 * BLOCK * BLOCK,), -1.0))]), int)
