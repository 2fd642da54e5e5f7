"""Causal attention over packed sequences with torch's own kernel (torch; runs inside the trainer's ranks).

Sequences lie one after the other, without padding, through the whole model. Only here, where sequences must not see
each other, those of like length are put side by side. flash-attn does without; this is for machines that lack it.

Legend: N tokens of all sequences, H query heads, K key and value heads, D head size; b sequences of at most L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "packed_sdpa"
"""Under which transformers knows this attention."""

MOST_PADDING = 0.25
"""Share of padding that sequences put side by side may have; more and they are split into two calls."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring sequences of like length."""

    tokens: int
    """Of all its sequences."""
    longest: int
    """L"""
    index: Tensor | None
    """[b, L] positions among the bucket's tokens, beyond a sequence's end its last one; None without padding."""
    valid: Tensor | None
    """[b, L] bool, false beyond a sequence's end; None without padding."""


def make_buckets(lengths: Sequence[int], *, device: torch.device) -> list[Bucket]:
    """Cut packed sequences, given longest first, into runs of like length."""
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
    return Bucket(tokens, longest, index.to(device), (offsets < counts[:, None]).to(device))


def packed_sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention for transformers' interface: query [1, H, N, D], key and value [1, K, N, D]; returns [1, N, H, D].

    ``settings`` holds ``scaling`` and ``buckets``, which the trainer passes through the model's forward.
    """
    buckets: Sequence[Bucket] = settings["buckets"]
    sizes = [bucket.tokens for bucket in buckets]
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for bucket, *packed in zip(
        buckets, *(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True
    ):
        q, k, v = (_side_by_side(tensor, bucket) for tensor in packed)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=settings["scaling"]).transpose(1, 2)
        outputs.append(attended.flatten(0, 1) if bucket.valid is None else attended[bucket.valid])
    return torch.cat(outputs)[None], None


def _side_by_side(packed: Tensor, bucket: Bucket) -> Tensor:
    """[H, tokens, D] as [b, H, L, D]."""
    if bucket.index is None:
        return packed.unflatten(1, (-1, bucket.longest)).transpose(0, 1)
    return packed[:, bucket.index].transpose(0, 1)


def register() -> None:
    """Make this attention known to transformers; it needs no mask."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_sdpa)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *arguments, **settings: None)
