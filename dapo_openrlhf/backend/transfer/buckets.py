"""A publication's tensors in flat buckets of bounded size (torch; runs in trainer ranks and in vLLM's workers).

Both ends compute the same plan from the layout, so a bucket travels as bytes without a description. A tensor that is
larger than a bucket is divided among several; no other is, so a loader mostly gets views of a bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, uint8

from dapo_openrlhf.backend.messages import WeightLayout

BUCKET_BYTES = 256 << 20
"""Largest size of a bucket. A sender holds two at a time, a receiver two and those whose tensors its model still needs."""
ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes of a bucket; the bytes between two tensors are zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of one tensor in a bucket; nearly always it is the whole tensor."""

    tensor: int
    """Index of the tensor in the layout."""
    begin: int
    """The part's first byte in the tensor."""
    offset: int
    """The part's first byte in the bucket."""
    size: int
    """Number of bytes."""


Bucket: TypeAlias = tuple[Piece, ...]


def plan(sizes: Sequence[int], limit: int = 0) -> tuple[Bucket, ...]:
    """Divide tensors of these sizes in bytes among buckets of at most ``limit`` bytes; 0 is :data:`BUCKET_BYTES`."""
    limit = max(ALIGNMENT, (limit or BUCKET_BYTES) // ALIGNMENT * ALIGNMENT)
    buckets: list[Bucket] = []
    bucket: list[Piece] = []
    free = limit
    for tensor, size in enumerate(sizes):
        begin = 0
        while True:
            if bucket and min(size - begin, limit) > free:
                buckets.append(tuple(bucket))
                bucket, free = [], limit
            part = min(size - begin, limit)
            bucket.append(Piece(tensor=tensor, begin=begin, offset=limit - free, size=part))
            begin, free = begin + part, free - _aligned(part)
            if begin == size:
                break
    return (*buckets, tuple(bucket)) if bucket else tuple(buckets)


def bucket_bytes(bucket: Bucket) -> int:
    """Size of a bucket in bytes."""
    return bucket[-1].offset + _aligned(bucket[-1].size)


def packed(layout: WeightLayout, tensors: Iterable[tuple[str, Tensor]], device: torch.device) -> Iterator[Tensor]:
    """Yield the buckets of a publication as bytes on ``device``, each in memory of its own.

    ``tensors`` come in the layout's order and are exhausted, since gathering them may be a collective.
    """
    remaining = iter(tensors)
    flat = torch.empty(0, dtype=uint8)
    for bucket in plan(layout.sizes):
        buffer = torch.zeros(bucket_bytes(bucket), dtype=uint8, device=device)
        for piece in bucket:
            if piece.begin == 0:
                flat = _next_bytes(remaining, layout, piece.tensor)
            buffer[piece.offset : piece.offset + piece.size].copy_(flat[piece.begin : piece.begin + piece.size])
        yield buffer
    for name, _ in remaining:
        raise ValueError(f"{name} is not in the layout of {len(layout.names)} tensors")


def _next_bytes(remaining: Iterator[tuple[str, Tensor]], layout: WeightLayout, index: int) -> Tensor:
    name, tensor = next(remaining)
    flat = tensor.detach().contiguous().view(-1).view(uint8)
    if (name, flat.numel()) != (layout.names[index], layout.sizes[index]):
        raise ValueError(
            f"{name} of {flat.numel()} bytes came where the layout has {layout.names[index]} of {layout.sizes[index]}"
        )
    return flat


class Unpacking:
    """Takes the buckets of one publication in order, and gives the tensors that each one completes."""

    def __init__(self, layout: WeightLayout) -> None:
        self._layout = layout
        self._plan = plan(layout.sizes)
        self._taken = 0
        self._divided: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of each bucket in bytes."""
        return tuple(map(bucket_bytes, self._plan))

    @property
    def complete(self) -> bool:
        """Whether every bucket was taken."""
        return self._taken == len(self._plan)

    def take(self, buffer: Tensor) -> list[tuple[str, Tensor]]:
        """The named tensors that the next bucket completes: views of it, except for a tensor that was divided."""
        bucket = self._plan[self._taken]
        self._taken += 1
        named: list[tuple[str, Tensor]] = []
        for piece in bucket:
            size = self._layout.sizes[piece.tensor]
            part = buffer[piece.offset : piece.offset + piece.size]
            if piece.size < size:
                if self._divided is None:
                    self._divided = torch.empty(size, dtype=uint8, device=buffer.device)
                self._divided[piece.begin : piece.begin + piece.size].copy_(part)
                if piece.begin + piece.size < size:
                    continue
                part, self._divided = self._divided, None
            named.append((self._layout.names[piece.tensor], self._shaped(piece.tensor, part)))
        return named

    def _shaped(self, index: int, flat: Tensor) -> Tensor:
        dtype: torch.dtype = getattr(torch, self._layout.dtypes[index])
        return flat.view(dtype).view(self._layout.shapes[index])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
