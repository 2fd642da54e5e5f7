"""The arguments that a model gets for a packed micro-batch (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from dapo_openrlhf.backend.trainer import attention, rows
from dapo_openrlhf.backend.trainer.collate import Tensors


class Inputs(Protocol):
    """Makes a model's arguments from a micro-batch."""

    def inputs(self, batch: Tensors) -> dict[str, Any]:
        """Keyword arguments of a forward pass."""
        ...


class Packing:
    """Makes the arguments of models that read packed sequences with one kind of attention."""

    def __init__(self, attention_name: str) -> None:
        """``attention_name``: the attention's name in transformers."""
        self.attention_name = attention_name

    def inputs(self, batch: Tensors) -> dict[str, Any]:
        """Tokens, their positions, which of them predict response tokens, and where sequences end."""
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "positions": batch.positions,
            **self._attention(batch),
        }

    def _attention(self, batch: Tensors) -> dict[str, Any]:
        """The arguments that tell the attention in use where sequences end."""
        device = batch.input_ids.device
        if self.attention_name == attention.NAME:
            return {"buckets": rows.make_buckets(batch.lengths, device=device)}
        ends = torch.tensor([0, *batch.lengths]).cumsum(0).to(device, torch.int32)
        longest = batch.lengths[0]
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
