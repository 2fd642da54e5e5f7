"""Turns micro-batches into packed tensors (torch; runs inside the trainer's ranks).

Legend: B responses, N tokens of their whole contexts, T tokens of the longest response, R tokens of all responses.
Sequences are packed longest first, without padding; the loss uses right-padded arrays [B, T]. An environment's tokens
are among the N, as a prompt's are, and not among the R.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dapo_openrlhf.backend.kept_tokens import joined_sets
from dapo_openrlhf.backend.messages import GroupTokens, VersionRuns
from dapo_openrlhf.backend.trainer.kept import Kept
from dapo_openrlhf.pipeline.batch import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """One micro-batch on the device; rows are in the order of :attr:`samples`."""

    samples: MicroBatch
    """The samples, longest sequence first."""
    lengths: tuple[int, ...]
    """[B] number of tokens of each sequence."""
    input_ids: Tensor
    """[1, N] int64 token ids."""
    position_ids: Tensor
    """[1, N] int64 position of each token in its sequence, from 0."""
    positions: Tensor
    """[R] for each response token, the index among the N tokens of the token that predicts it."""
    targets: Tensor
    """[R] int64 ids of the response tokens."""
    present: Tensor
    """[B, T] bool, true where a response has a token; R entries are true."""
    mask: Tensor
    """[B, T] float32, 1 on trained tokens."""
    advantages: Tensor
    """[B, 1] float32 advantage of each response."""
    weights: Tensor
    """[B, 1] float32 weight of each of a response's tokens in the policy loss of the update."""
    fresh: Tensor
    """[B, 1] float32, 1 for responses that were sampled with the weights that the step begins with."""
    rollout_logprobs: Tensor
    """[B, T] float32 log-probabilities of the sampling policy, 0 beyond a response."""
    kept: Kept | None
    """The tokens among which each of the R response tokens was drawn; None if that was the whole vocabulary."""
    versions: tuple[VersionRuns, ...]
    """[B] which weights sampled each token of each response; see :meth:`token_versions`."""

    def unflatten(self, values: Tensor) -> Tensor:
        """[R] values of response tokens as [B, T], 0 beyond a response; differentiable."""
        return torch.zeros_like(self.mask).masked_scatter(self.present, values)

    def token_versions(self) -> Tensor:
        """[B, T] int32 version of the weights that sampled each token, -1 beyond a response."""
        flat = torch.from_numpy(np.concatenate([runs.per_token() for runs in self.versions])).to(self.mask.device)
        return torch.full_like(self.mask, -1, dtype=torch.int32).masked_scatter(self.present, flat)


def collate(micro_batch: MicroBatch, tokens: Mapping[int, GroupTokens], *, device: torch.device) -> Tensors:
    """Build one micro-batch from its samples and the tokens of their groups."""
    samples = tuple(sorted(micro_batch, key=lambda sample: sample.tokens, reverse=True))
    ids, positions, logprobs, versions, kept = [], [], [], [], []
    start = 0
    for sample in samples:
        group = tokens[sample.group]
        context, sampled = group.context(sample.index)
        ids.append(context)
        positions.append(start + sampled - 1)
        logprobs.append(group.response(sample.index)[1])
        versions.append(group.response_versions(sample.index))
        if (sets := group.response_kept(sample.index)) is not None:
            kept.append(sets)
        start += sample.tokens
    input_ids = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device)
    flat_positions = torch.from_numpy(np.concatenate(positions)).to(device)
    response_lengths = torch.tensor([sample.length for sample in samples])
    present = torch.arange(int(response_lengths.max())) < response_lengths[:, None]
    trained = torch.tensor([sample.trained for sample in samples])
    padded_logprobs = torch.zeros(present.shape).masked_scatter(present, torch.from_numpy(np.concatenate(logprobs)))
    # Values without a gradient must not spoil sums either: 0 times infinity is NaN.
    padded_logprobs = padded_logprobs.where(trained[:, None] | padded_logprobs.isfinite(), 0.0)
    return Tensors(
        samples=samples,
        lengths=tuple(sample.tokens for sample in samples),
        input_ids=input_ids[None],
        position_ids=torch.cat([torch.arange(sample.tokens) for sample in samples])[None].to(device),
        positions=flat_positions,
        targets=input_ids[flat_positions + 1],
        present=present.to(device),
        mask=(present & trained[:, None]).float().to(device),
        advantages=torch.tensor([[sample.advantage] for sample in samples]).to(device),
        weights=torch.tensor([[sample.weight] for sample in samples]).to(device),
        fresh=torch.tensor([[float(sample.fresh)] for sample in samples]).to(device),
        rollout_logprobs=padded_logprobs.to(device),
        kept=Kept.of(joined_sets(kept), device=device) if kept else None,
        versions=tuple(versions),
    )
