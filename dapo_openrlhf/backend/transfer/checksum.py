"""A checksum of named tensors, computed where they are stored (torch; runs in trainer ranks and in vLLM's workers).

Weights go from one GPU to another without passing through the host, so what arrived is compared with what was sent by
reading the memory of either side once. Every bit counts, and so does its position: a flipped bit, two exchanged
tensors, rows or elements, and a missing tensor each change the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    """Takes tensors one after the other, and waits for the device once, at the end."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Include a tensor. The work is queued on the current stream; the tensor may be overwritten once it has run."""
        self._names.append(name)
        self._sums.append(bits_sum(tensor))

    @property
    def tensors(self) -> int:
        """Number of tensors that are included."""
        return len(self._names)

    def value(self) -> int:
        """The checksum, 0 to 2^64 - 1; it depends on names and order. All streams in use must have been waited for."""
        sums = stack(self._sums).tolist() if self._sums else []
        digest = xxhash.xxh3_64()
        for name, total in zip(self._names, sums, strict=True):
            digest.update(f"{name}={total};".encode())
        return digest.intdigest()


def counted(named: Iterable[tuple[str, Tensor]], checksum: Checksum) -> Iterator[tuple[str, Tensor]]:
    """Yield the same tensors, each included in the checksum as it passes."""
    for name, tensor in named:
        checksum.add(name, tensor)
        yield name, tensor


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
