"""Log-probabilities and entropies of given tokens without all logits at once (torch; runs inside the trainer's ranks).

A causal language model's ``forward`` is replaced by :func:`token_logprobs`, so that DeepSpeed's hooks see one call per
micro-batch and [tokens x vocabulary] in float32 never exists: the output layer runs on chunks of positions, and runs
again in the backward pass. The chunks are processed inside one call of the output layer, see :mod:`own_forward`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dapo_openrlhf.backend.trainer import attention, rows
from dapo_openrlhf.backend.trainer.kept import Kept
from dapo_openrlhf.backend.trainer.own_forward import OwnForward, Tail

LOGITS_PER_CHUNK = 1 << 27
"""Number of logits held at once: 512 MB in float32."""

WORDS_PER_KEPT = 8
"""Number of float32 values that a kept token takes beside its logit, indices included."""


def install(model: Any, *, by_rows: bool = False) -> None:
    """Make ``model(...)`` compute :func:`token_logprobs` from now on; the module and its parameters stay the same.

    ``by_rows``: the model reads sequences side by side, see :mod:`rows`. Raises ``UnknownHead``.
    """
    model.forward = functools.partial(token_logprobs_by_rows if by_rows else token_logprobs, OwnForward(model))


def token_logprobs(
    model: OwnForward,
    *,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float,
    kept: Kept | None = None,
    buckets: Sequence[rows.Bucket] | None = None,
    entropy_gradient: bool = False,
    balance: bool = False,
    **inputs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy of each target token, and the load-balancing loss over all tokens.

    ``input_ids`` [1, N] are packed sequences; ``positions`` [R] are indices of those of the N tokens whose next tokens
    are ``targets`` [R]. ``buckets`` or ``inputs`` tell the attention in use where sequences end. Returns float32
    (logprobs [R], entropies [R]) of the distribution at ``temperature``, over the tokens in ``kept`` if that is given;
    entropies carry a gradient only with ``entropy_gradient``. The load-balancing loss is transformers' own, in which each of
    the N tokens counts alike; it is 0 without ``balance``, which takes a model that :mod:`balance` does not refuse.
    """
    largest = 0 if kept is None else kept.largest
    chunk_rows = max(1, LOGITS_PER_CHUNK // (model.vocabulary + WORDS_PER_KEPT * largest))
    one = functools.partial(_chunk, temperature=temperature, entropy_gradient=entropy_gradient)

    def read(layer: Callable[[Tensor], Tensor], tail: Tail, hidden: Tensor) -> tuple[Tensor, ...]:
        again = torch.is_grad_enabled() and hidden.shape[0] > chunk_rows
        chunks = torch.split(hidden, chunk_rows), torch.split(targets, chunk_rows)
        sets = [None] * len(chunks[0]) if kept is None else kept.split(chunk_rows)
        parts = [
            checkpoint(one, layer, tail, h, t, k, use_reentrant=False, preserve_rng_state=False)
            if again
            else one(layer, tail, h, t, k)
            for h, t, k in zip(*chunks, sets, strict=True)
        ]
        return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropies for _, entropies in parts])

    with attention.packed(buckets):
        (logprobs, entropies), imbalance = model(read, positions, {"input_ids": input_ids, **inputs}, balance=balance)
    return logprobs, entropies if entropy_gradient else entropies.detach(), imbalance


def token_logprobs_by_rows(
    model: OwnForward,
    *,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float,
    position_ids: Tensor,
    kept: Kept | None = None,
    entropy_gradient: bool = False,
    **_packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as :func:`token_logprobs`, with packed sequences of similar length side by side.

    It has no load-balancing loss, because transformers' would count the padding of the rows.
    """
    parts = [
        token_logprobs(
            model,
            input_ids=part.input_ids,
            positions=part.positions,
            targets=targets[part.of],
            temperature=temperature,
            kept=None if kept is None else kept.at(part.of),
            entropy_gradient=entropy_gradient,
        )
        for part in rows.parts(input_ids, position_ids, positions)
    ]
    logprobs, entropies, _ = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies), logprobs[0].new_zeros(())


def _chunk(
    layer: Callable[[Tensor], Tensor],
    tail: Tail,
    hidden: Tensor,
    targets: Tensor,
    kept: Kept | None,
    *,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits = tail(layer(hidden))
    if kept is not None:
        return kept.logprobs(logits, targets, temperature, entropy_gradient=entropy_gradient)
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    log_normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = log_normaliser - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return logprobs, entropies if entropy_gradient else entropies.detach()
