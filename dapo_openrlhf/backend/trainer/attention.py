"""Causal attention over packed sequences with torch's own kernel (torch; runs inside the trainer's ranks).

Sequences pass through the whole model one after the other, without padding. Only in the attention, where sequences must
not see each other, those of similar length are put side by side. flash-attn does not need this; this attention is for
machines that lack it.

The ends of the sequences reach the attention as its mask, which every model passes on; some layers drop other
arguments.

Legend: N tokens of all sequences, H query heads, K key and value heads, D head size; b sequences of at most L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from dapo_openrlhf.algorithm.choices import Attention
from dapo_openrlhf.backend.trainer.rows import Bucket

NAME = "packed_attention"
"""The name of this attention in transformers."""

QUERIES = 256
"""Number of query tokens whose scores are computed at once where torch's kernel for plain causal attention cannot be
used."""


_packed: ContextVar[Sequence[Bucket]] = ContextVar("packed sequences of the running forward pass")


@dataclass(frozen=True, slots=True)
class Visible:
    """The tokens that each token sees; this is the mask of this attention."""

    buckets: Sequence[Bucket]
    """Buckets of the packed sequences. No sequence sees another."""
    allowed: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None
    """transformers' mask function of the indices of batch, head, query and key, which broadcast. None if a token sees
    itself and all earlier tokens of its sequence."""
    reach: int | None
    """A token sees no token that is this many or more positions before it; None if there is no such limit."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are computed from the products of queries and keys."""

    scaling: float | None
    """Factor of the products; None for D to the power of -1/2."""
    softcap: float | None
    """Soft cap, c in c tanh(score / c) (Gemma 2, arXiv 2408.00118, section 2)."""
    sinks: Tensor | None
    """[H] scores of a token that is always seen and has no value (gpt-oss, arXiv 2508.10925, section 2.2)."""

    @property
    def plain(self) -> bool:
        """Whether torch's kernel can compute these scores."""
        return self.softcap is None and self.sinks is None


def packed_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' interface: query [1, H, N, D], key and value [1, K, N, D]; returns [1, N, H, D].

    ``attention_mask`` is the result of :func:`visible`. Dropout is ignored, because a policy is trained without it.
    """
    if not isinstance(attention_mask, Visible):
        raise NotImplementedError(f"{type(module).__name__} gets no mask by which it could keep packed sequences apart")
    if settings.get("position_bias") is not None:
        raise NotImplementedError(f"{type(module).__name__}: ds.attn_implementation sdpa knows no position bias")
    sizes = [bucket.tokens for bucket in attention_mask.buckets]
    scores = Scores(scaling, softcap, s_aux)
    outputs = []
    for bucket, *packed in zip(
        attention_mask.buckets, *(torch.split(tensor[0], sizes, dim=1) for tensor in (query, key, value)), strict=True
    ):
        q, k, v = (_side_by_side(tensor, bucket) for tensor in packed)
        attended = _attend(q, k, v, attention_mask, scores).transpose(1, 2).flatten(0, 1)
        outputs.append(attended if bucket.valid is None else attended[bucket.valid])
    return torch.cat(outputs)[None], None


def _side_by_side(packed: Tensor, bucket: Bucket) -> Tensor:
    """Rearrange [H, tokens, D] as [b, H, L, D]."""
    if bucket.index is None:
        return torch.unflatten(packed, 1, (-1, bucket.longest)).transpose(0, 1)
    return packed[:, bucket.index].transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Attention output [b, H, L, D] for query [b, H, L, D], key and value [b, K, L, D]."""
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    # A window or chunk may hold the whole sequence.
    sees_all = visible.allowed is None or (visible.reach is not None and visible.reach >= length)
    if sees_all and scores.plain:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scores.scaling)
    outputs = []
    for start in range(0, length, QUERIES):
        end = min(start + QUERIES, length)
        first = 0 if sees_all or visible.reach is None else max(0, start - visible.reach + 1)
        mask = _mask(start, first, end, visible, query.device)
        block = query[:, :, start:end], key[:, :, first:end], value[:, :, first:end], mask
        if scores.plain:
            outputs.append(scaled_dot_product_attention(*block[:3], attn_mask=mask, scale=scores.scaling))
        elif torch.is_grad_enabled():  # all blocks' scores together would be L x L
            outputs.append(checkpoint(_by_hand, *block, scores, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(_by_hand(*block, scores))
    return torch.cat(outputs, dim=2)


def _mask(start: int, first: int, end: int, visible: Visible, device: torch.device) -> Tensor:
    """Which of the tokens [first, end) the tokens [start, end) see: [end - start, end - first] bool."""
    queries = torch.arange(start, end, device=device)[:, None]
    keys = torch.arange(first, end, device=device)[None]
    if visible.allowed is None:
        return keys <= queries
    # Sequences come longest first, so all these indices lie in the first one, in case the function looks up sequences.
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return visible.allowed(zero, zero, queries, keys).expand(end - start, end - first)


def _by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """Attention with scores of any kind; the softmax is computed in float32."""
    scaling = query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling
    products = query @ key.transpose(2, 3) * scaling
    if scores.softcap is not None:
        products = torch.tanh(products / scores.softcap) * scores.softcap
    products = products.float().masked_fill(~mask, -torch.inf)
    if scores.sinks is None:
        return products.softmax(-1).to(value.dtype) @ value
    sinks = scores.sinks.float().view(1, -1, 1, 1).expand(*products.shape[:3], 1)
    shares = torch.cat([products, sinks], dim=-1).softmax(-1)[..., :-1]
    return shares.to(value.dtype) @ value


def visible(
    *arguments: Any, mask_function: Any, local_size: int | None = None, use_vmap: bool = False, **settings: Any
) -> Visible:
    """The mask that transformers makes for this attention: a function of positions instead of a tensor."""
    if "allow_is_bidirectional_skip" in settings:
        raise NotImplementedError("a model in which tokens see later ones is no policy that could be trained here")
    plain = local_size is None and not use_vmap
    return Visible(_packed.get(), None if plain else mask_function, local_size)


@contextmanager
def packed(buckets: Sequence[Bucket] | None) -> Iterator[None]:
    """Set where the sequences of forward passes in this block end; None for models that are told in another way."""
    if buckets is None:
        yield
        return
    token = _packed.set(buckets)
    try:
        yield
    finally:
        _packed.reset(token)


def implementation(wanted: Attention, *, flash_attention: bool) -> str:
    """transformers' name of the attention to use. ``flash_attention`` says whether that package is installed."""
    match wanted:
        case "sdpa":
            return NAME
        case "flash_attention_2":
            return wanted if flash_attention else NAME
        case _:
            assert_never(wanted)


def register() -> None:
    """Register this attention and its masks with transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_sdpa)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, visible)
