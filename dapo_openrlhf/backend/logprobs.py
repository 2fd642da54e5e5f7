"""Log-probs and entropies of given tokens without all logits at once (torch; runs inside the trainer's ranks).

A causal language model's ``forward`` is replaced by :func:`token_logprobs`, so that DeepSpeed's hooks see one call per
micro-batch and [tokens x vocabulary] in float32 never exists: the output layer runs on chunks of positions, and is
run again in the backward pass.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 1 << 27
"""Logits held at once: 512 MB in float32."""


def install(model: Any) -> None:
    """Let ``model(...)`` compute :func:`token_logprobs` from now on; the module and its parameters stay the same."""
    model.forward = types.MethodType(token_logprobs, model)


def token_logprobs(
    model: Any,
    *,
    input_ids: Tensor,
    position_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float,
    **attention: Any,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of each target token.

    ``input_ids``, ``position_ids`` [1, N] are packed sequences; ``positions`` [R] are indices into the N tokens whose
    next token is ``targets`` [R]. ``attention`` is what the attention needs to keep sequences apart. Returns float32
    (logprobs [R], entropies [R]) of the distribution at ``temperature``; entropies carry no gradient.
    """
    hidden = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention)[0]
    hidden = hidden[0][positions]
    head = model.get_output_embeddings()
    rows = max(1, LOGITS_PER_CHUNK // model.config.get_text_config().vocab_size)
    parts = [
        checkpoint(_chunk, head, h, t, temperature, use_reentrant=False)
        if torch.is_grad_enabled() and hidden.shape[0] > rows
        else _chunk(head, h, t, temperature)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropies for _, entropies in parts])


def _chunk(head: Any, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()
    if temperature != 1.0:
        logits = logits / temperature
    log_normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normaliser
    with torch.no_grad():
        entropies = log_normaliser - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return logprobs, entropies.detach()
