"""The trainer's end of the weight sync through the object store (runs on trainer rank 0)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from dapo_openrlhf.backend.messages import WeightLayout, WeightManifest

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 64
"""Alignment in bytes: each tensor in the flat buffer begins at a multiple of this."""


class ObjectStoreSender:
    """Packs all weights into one flat buffer in host memory, which Ray copies into its object store."""

    def __init__(self, layout: WeightLayout) -> None:
        """Allocate as much host memory as the weights take, once for all publications."""
        self._layout = layout
        self._offsets = _offsets(layout.sizes)
        self._buffer = torch.empty(self._offsets[-1], dtype=torch.uint8)

    def pack(self, parameters: Iterable[tuple[str, Tensor]]) -> tuple[WeightManifest, NDArray[np.uint8]]:
        """Copy all tensors, in the layout's order; the buffer stays unchanged until the next call."""
        for start, (_, tensor) in zip(self._offsets, parameters, strict=False):
            flat = tensor.contiguous().view(-1).view(torch.uint8)
            self._buffer[start : start + flat.numel()].copy_(flat)
        array: NDArray[np.uint8] = self._buffer.numpy()
        manifest = WeightManifest(
            names=self._layout.names,
            dtypes=self._layout.dtypes,
            shapes=self._layout.shapes,
            offsets=tuple(self._offsets),
            checksum=xxhash.xxh3_64_intdigest(array.data),
        )
        return manifest, array


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Offsets in bytes at which tensors of these sizes begin in the flat buffer, and the offset of its end."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return offsets
