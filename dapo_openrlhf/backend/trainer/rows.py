"""Puts packed sequences side by side, as rows (torch; runs inside the trainer's ranks).

This is for models whose layers cannot be told where a packed sequence ends: short convolutions, state spaces, linear
attention, attention of their own. As rows, sequences do not touch each other, and padding comes after a row's tokens,
where a causal model does not see it. Sequences of similar length share a pass; the number of passes differs from rank
to rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PADDING = 0.25
"""Maximum share of padding in sequences put side by side; with more, they are divided into two buckets."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring sequences of similar length."""

    tokens: int
    """Number of tokens of all its sequences."""
    longest: int
    """L, the number of tokens of its longest sequence."""
    index: Tensor | None
    """[b, L] indices into the bucket's tokens; beyond a sequence's end, that of its last token. None without
    padding."""
    valid: Tensor | None
    """[tokens] indices of the bucket's tokens into the b x L; the rest lies beyond a sequence's end. None without
    padding. Indices, because selecting by a mask would make the host wait for a GPU in every layer."""


@dataclass(frozen=True, slots=True)
class Part:
    """One bucket of a micro-batch, as rows."""

    input_ids: Tensor
    """[b, L] int64 token ids."""
    positions: Tensor
    """The bucket's share of the micro-batch's positions, as indices into the b x L tokens."""
    of: Tensor
    """The indices of that share among the micro-batch's positions."""


def make_buckets(lengths: Sequence[int], *, device: torch.device) -> list[Bucket]:
    """Divide packed sequences, given longest first, into runs of similar length."""
    if list(lengths) != sorted(lengths, reverse=True):
        raise ValueError("packed sequences must come longest first")
    buckets, first = [], 0
    while first < len(lengths):
        last = first
        while last < len(lengths) and lengths[last] >= (1 - MOST_PADDING) * lengths[first]:
            last += 1
        buckets.append(_bucket(lengths[first:last], device))
        first = last
    return buckets


def _bucket(lengths: Sequence[int], device: torch.device) -> Bucket:
    tokens, longest = sum(lengths), lengths[0]
    if lengths[-1] == longest:
        return Bucket(tokens, longest, None, None)
    counts, offsets = torch.tensor(lengths), torch.arange(longest)
    starts = counts.cumsum(0) - counts
    index = starts[:, None] + torch.minimum(offsets, counts[:, None] - 1)
    valid = (offsets < counts[:, None]).flatten().nonzero()[:, 0]
    return Bucket(tokens, longest, index.to(device), valid.to(device))


def parts(input_ids: Tensor, position_ids: Tensor, positions: Tensor) -> Iterator[Part]:
    """Divide packed sequences, and ``positions`` [R] among their tokens, into buckets of rows.

    ``input_ids`` have shape [1, N]; ``position_ids`` [1, N] begin with 0 in each sequence.
    """
    starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    lengths = [end - start for start, end in itertools.pairwise([*starts, position_ids.shape[1]])]
    start = 0
    for bucket in make_buckets(lengths, device=input_ids.device):
        packed = input_ids[0, start : start + bucket.tokens]
        ids = torch.unflatten(packed, 0, (-1, bucket.longest)) if bucket.index is None else packed[bucket.index]
        of = ((positions >= start) & (positions < start + bucket.tokens)).nonzero()[:, 0]
        local = positions[of] - start
        if bucket.valid is not None:
            local = bucket.valid[local]
        yield Part(ids, local, of)
        start += bucket.tokens
