"""Micro-batches as tensors (torch; runs inside the trainer's ranks).

Legend: B responses, L positions of prompt and response, right-padded; T response positions, right-padded; N response
tokens of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.batch import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """One micro-batch on the device."""

    input_ids: Tensor
    """[B, L] int64, 0 beyond a sequence: right-padded, so that causal attention needs no mask."""
    positions: Tensor
    """[N] index into the flattened [B * L] of the position that predicts each response token."""
    targets: Tensor
    """[N] int64, the response tokens."""
    present: Tensor
    """[B, T] bool, where a response has a token; N are true."""
    mask: Tensor
    """[B, T] float32, 1 on trained tokens."""
    advantages: Tensor
    """[B, 1] float32"""
    rollout_logprobs: Tensor
    """[B, T] float32, 0 beyond a response."""

    def unflatten(self, values: Tensor) -> Tensor:
        """[N] values of response tokens as [B, T], 0 beyond a response; differentiable."""
        return torch.zeros_like(self.mask).masked_scatter(self.present, values)


def collate(samples: MicroBatch, tokens: Mapping[int, GroupTokens], *, device: torch.device) -> Tensors:
    """Build one micro-batch from its samples and the tokens of their groups."""
    rows, width = len(samples), max(sample.tokens for sample in samples)
    longest = max(sample.length for sample in samples)
    input_ids = torch.zeros(rows, width, dtype=torch.int64)
    rollout_logprobs = torch.zeros(rows, longest)
    lengths = torch.tensor([sample.length for sample in samples])
    positions = []
    for row, sample in enumerate(samples):
        group = tokens[sample.group]
        response_ids, logprobs = group.response(sample.index)
        start = sample.prompt_length
        input_ids[row, :start] = torch.as_tensor(group.prompt_ids.copy())
        input_ids[row, start : sample.tokens] = torch.as_tensor(response_ids.copy())
        rollout_logprobs[row, : sample.length] = torch.as_tensor(logprobs.copy())
        positions.append(row * width + torch.arange(start - 1, sample.tokens - 1))
    flat_positions = torch.cat(positions)
    present = torch.arange(longest) < lengths[:, None]
    trained = torch.tensor([sample.trained for sample in samples])
    tensors = Tensors(
        input_ids=input_ids,
        positions=flat_positions,
        targets=input_ids.flatten()[flat_positions + 1],
        present=present,
        mask=(present & trained[:, None]).float(),
        advantages=torch.tensor([[sample.advantage] for sample in samples]),
        rollout_logprobs=rollout_logprobs,
    )
    return Tensors(**{name: getattr(tensors, name).to(device) for name in Tensors.__dataclass_fields__})
