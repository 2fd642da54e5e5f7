"""The value model of one trainer rank, beside the policy (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.loss import Sums, aggregate, value_loss
from dapo_openrlhf.backend.trainer.collate import Tensors
from dapo_openrlhf.backend.trainer.packing import Inputs
from dapo_openrlhf.backend.trainer.sharded_model import ShardedModel


class Critic:
    """A model whose forward pass is :func:`values.token_values`, with an optimizer of its own."""

    def __init__(self, model: ShardedModel, inputs: Inputs, *, clip: float | None) -> None:
        """``clip``: see :func:`value_loss`."""
        self.model = model
        self._inputs = inputs
        self._clip = clip

    def values(self, batch: Tensors) -> Tensor:
        """Values [B, T] of the states before each response token, 0 beyond a response."""
        return batch.unflatten(self.model(**self._inputs.inputs(batch)))

    def learn(self, batch: Tensors, *, old_values: Tensor, returns: Tensor, total_tokens: int, last: bool) -> Sums:
        """Run the backward pass of one micro-batch; the caller steps the optimizer.

        ``last`` marks the last micro-batch of an update. Returns sums over trained tokens, from which the share of the
        returns' variance that the old values explain can be computed; ``value_loss`` is this micro-batch's share of the
        update's value loss.
        """
        losses = value_loss(self.values(batch), old_values, returns, clip=self._clip)
        loss = aggregate(losses, batch.mask, torch.tensor(1 / max(total_tokens, 1)))
        self.model.backward(loss, last=last)
        errors = returns - old_values
        return {
            "value_loss": loss.detach(),
            "value": (old_values * batch.mask).sum(),
            "return": (returns * batch.mask).sum(),
            "return_squared": (returns.square() * batch.mask).sum(),
            "value_error": (errors * batch.mask).sum(),
            "value_error_squared": (errors.square() * batch.mask).sum(),
        }
