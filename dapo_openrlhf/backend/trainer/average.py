"""An exponential average of the policy's weights (torch; runs inside the trainer's ranks).

As OpenRLHF keeps it: begun at the model's own weights, updated after every gradient step, and apart from what is trained,
sampled and evaluated. It is in float32, because a 16-bit number does not change by 0.8 % of a small difference, and in host
memory: under ZeRO-3 each rank averages its part of every parameter, otherwise rank 0 averages all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel
from dapo_openrlhf.backend.trainer.state_tree import HostCopies, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Average:
    """The average of a model's trained weights; with adapters that of each of their two matrices."""

    def __init__(self, model: ShardedModel, *, beta: float) -> None:
        """``beta``: the share of the old average that an update keeps, from 0 to below 1."""
        self._model = model
        self._beta = beta
        self._parts = {name: part.to("cpu", torch.float32, copy=True) for name, part in model.owned()}

    def update(self) -> None:
        """Move towards the model's weights: beta average + (1 - beta) weights. Not a collective call."""
        for name, part in self._model.owned():
            self._parts[name].mul_(self._beta).add_(part.to("cpu", torch.float32), alpha=1 - self._beta)

    def state(self) -> Tree:
        """This rank's part, not copied."""
        return self._parts

    def load_state(self, state: Tree) -> None:
        """Load what :meth:`state` returned on this rank, among as many ranks."""
        for name, part in self._parts.items():
            part.copy_(state[name])

    def copy_whole(self, copies: HostCopies | None, name: str) -> dict[str, Tensor]:
        """The tensors of a Hugging Face folder as :meth:`ShardedModel.copy_whole` makes them, of the averages.

        They are rounded to the model's data type. Every rank must call it.
        """
        return self._model.copy_whole(copies, name, self._parts)

    def write_whole(self, tensors: Mapping[str, Tensor], folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write them as the model's would be written. Not a collective call."""
        self._model.write_whole(tensors, folder, tokenizer)
