"""The tokens among which a sampler drew each token, packed (numpy).

Where ``rollout.top_p``, ``top_k`` or ``min_p`` cut the distribution, the policy that acts is the rest of it,
renormalised. Which tokens are the rest is decided by the sampler's own arithmetic on its own logits, so it is recorded
there and never computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITMAPS_AT_ONCE = 256
"""Number of bitmaps that are unpacked together: 40 MB with a vocabulary of 150,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokens:
    """For each of N sampled tokens the set of tokens that it was drawn from.

    A set is stored as ascending ids, or as one bit for each token of the vocabulary where that takes less; which of the
    two follows from its size.
    """

    vocabulary: int
    """V: ids are below it."""
    counts: NDArray[np.int32]
    """[N] size of each set, at least 1."""
    packed: NDArray[np.uint8]
    """The sets, one after the other."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[N] number of bytes of each set."""
        return np.minimum(self.counts.astype(np.int64) * width(self.vocabulary), bitmap_size(self.vocabulary))

    def part(self, start: int, end: int) -> KeptTokens:
        """The sets of tokens ``[start, end)``."""
        ends = np.concatenate([[0], np.cumsum(self.sizes)])
        return KeptTokens(
            vocabulary=self.vocabulary, counts=self.counts[start:end], packed=self.packed[ends[start] : ends[end]]
        )

    def ids(self) -> NDArray[np.int32]:
        """The ids of all sets, one set after the other."""
        listed = self.counts.astype(np.int64) * width(self.vocabulary) <= bitmap_size(self.vocabulary)
        ends = np.cumsum(self.sizes)
        parts: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        begins = np.flatnonzero(np.diff(listed, prepend=not listed[0])) if len(listed) else np.zeros(0, np.int64)
        for first, last in zip(begins, [*begins[1:], len(listed)], strict=False):
            run = self.packed[ends[first] - self.sizes[first] : ends[last - 1]]
            if listed[first]:
                parts.append(run.view(_id_type(self.vocabulary)).astype(np.int32))
            else:
                parts += _of_bitmaps(run.reshape(last - first, -1), self.vocabulary)
        return np.concatenate(parts)


def pack_set(ids: NDArray[np.int32], vocabulary: int) -> bytes:
    """One set of ascending ids, as :attr:`KeptTokens.packed` has it."""
    if len(ids) * width(vocabulary) <= bitmap_size(vocabulary):
        return ids.astype(_id_type(vocabulary)).tobytes()
    kept = np.zeros(vocabulary, bool)
    kept[ids] = True
    return np.packbits(kept, bitorder="little").tobytes()


def joined_sets(parts: Sequence[KeptTokens]) -> KeptTokens:
    """The sets of all parts, at least one, one after the other."""
    return KeptTokens(
        vocabulary=parts[0].vocabulary,
        counts=np.concatenate([part.counts for part in parts]),
        packed=np.concatenate([part.packed for part in parts]),
    )


def width(vocabulary: int) -> int:
    """Number of bytes of an id."""
    return _id_type(vocabulary).itemsize


def bitmap_size(vocabulary: int) -> int:
    """Number of bytes of a bit for each token."""
    return -(-vocabulary // 8)


def _id_type(vocabulary: int) -> np.dtype[np.uint16] | np.dtype[np.int32]:
    return np.dtype(np.uint16) if vocabulary <= 1 << 16 else np.dtype(np.int32)


def _of_bitmaps(bitmaps: NDArray[np.uint8], vocabulary: int) -> list[NDArray[np.int32]]:
    chunks = (bitmaps[begin : begin + BITMAPS_AT_ONCE] for begin in range(0, len(bitmaps), BITMAPS_AT_ONCE))
    unpacked = (np.unpackbits(chunk, axis=1, count=vocabulary, bitorder="little") for chunk in chunks)
    return [np.nonzero(bits)[1].astype(np.int32) for bits in unpacked]
