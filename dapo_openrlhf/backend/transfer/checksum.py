"""The checksum of a publication, computed bucket by bucket where the bytes are (torch; runs at both ends).

In host memory a bucket's sum is XXH3-64. Between GPUs weights do not pass through the host, so a bucket's sum is computed
by its device, with some ten operations for each :data:`BLOCKS_AT_ONCE` blocks. Every bit counts, and so does its position:
a flipped bit, two exchanged tensors, rows or elements, and a missing tensor each change the sum.
"""

from __future__ import annotations

import xxhash
from torch import Tensor, arange, cat, int16, int64, stack, uint8
from torch.nn.functional import pad

BLOCK = 1024
"""Number of elements that are added up before the sum is weighted by its position."""
BLOCKS_AT_ONCE = 1 << 13
"""PyTorch makes 64-bit copies of what it adds up. With so many blocks a copy has 64 MiB, not four times an embedding's
size."""
PRIME = 0x9E3779B1
"""Factor that spreads positions over 64 bits."""


class Checksum:
    """Takes a publication's buckets one after the other, and waits for their device once, at the end."""

    def __init__(self) -> None:
        self._sums: list[int | Tensor] = []

    def add(self, bucket: Tensor) -> None:
        """Include a bucket of bytes. On a device the work is queued on the current stream."""
        self._sums.append(bucket_sum(bucket))

    @property
    def buckets(self) -> int:
        """Number of buckets that are included."""
        return len(self._sums)

    def value(self) -> int:
        """The checksum, 0 to 2^64 - 1; it depends on the order. All streams in use must have been waited for."""
        digest = xxhash.xxh3_64()
        for total in self._sums:
            digest.update(f"{int(total)};".encode())
        return digest.intdigest()


def bucket_sum(bucket: Tensor) -> int | Tensor:
    """One bucket's sum, an int64 tensor if the bucket is on a device. Both ends have it on the same kind of device."""
    return xxhash.xxh3_64_intdigest(bucket.numpy().data) if bucket.device.type == "cpu" else bits_sum(bucket)


def bits_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's 16-bit patterns, each weighted by its position, modulo 2^64: int64, shape []."""
    flat = tensor.detach().contiguous().view(-1).view(uint8)
    bits = pad(flat, (0, -flat.numel() % 2)).view(int16) if flat.numel() % 2 else flat.view(int16)
    whole = bits.numel() // BLOCK * BLOCK
    total = _weighed(bits[whole:].to(int64))
    if whole:
        blocks = bits[:whole].view(-1, BLOCK).split(BLOCKS_AT_ONCE)
        # Weighting each element would need an index for each. The sums over rows and over columns of the same matrix
        # detect an exchange across blocks and one within a block.
        rows = cat([some.sum(1, dtype=int64) for some in blocks])
        columns = stack([some.sum(0, dtype=int64) for some in blocks]).sum(0)
        total = total + _weighed(rows) + 3 * _weighed(columns)
    return total


def _weighed(values: Tensor) -> Tensor:
    places = arange(1, values.numel() + 1, device=values.device, dtype=int64)
    return (values * (places * PRIME)).sum()
