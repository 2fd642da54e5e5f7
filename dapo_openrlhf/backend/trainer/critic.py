"""The value model of one trainer rank, beside the policy (runs inside the trainer's ranks)."""

from __future__ import annotations

import torch
from torch import Tensor

from dapo_openrlhf.algorithm.loss import aggregate, value_loss
from dapo_openrlhf.backend.trainer.collate import Tensors
from dapo_openrlhf.backend.trainer.gate import Gate
from dapo_openrlhf.backend.trainer.models import Models
from dapo_openrlhf.backend.trainer.strategy import Strategy


class Critic:
    """OpenRLHF's critic under DeepSpeed, with an optimizer of its own and the policy's schedule."""

    def __init__(self, models: Models, strategy: Strategy, *, total_updates: int) -> None:
        actor, critic = strategy.args.actor, strategy.args.critic
        self._models = models
        self._strategy = strategy
        self._clip = critic.value_clip
        settings = {
            "optim": "adam",
            "adam": vars(critic.adam),
            "lr_scheduler": actor.lr_scheduler,
            "lr_warmup_ratio": actor.lr_warmup_ratio,
            "max_norm": actor.max_norm,
            "scheduler_steps": total_updates,
        }
        model = models.critic(critic.model_name_or_path)
        self.engine, *_ = strategy.prepare((model, settings))
        self.engine.eval()
        self.gate = Gate(self.engine)

    def values(self, batch: Tensors) -> Tensor:
        """Values [B, T] of the states before each response token, 0 beyond a response."""
        return batch.unflatten(self.engine(**self._models.inputs(batch)))

    def learn(
        self, batch: Tensors, *, old_values: Tensor, returns: Tensor, total_tokens: int, last: bool
    ) -> dict[str, Tensor]:
        """Backward pass of one micro-batch, of which ``last`` is an update's last; the step is the gate's to let be done.

        Returns sums over trained tokens, from which the share of the returns' variance that the old values explain
        follows; ``value_loss`` is a share of the update's.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        losses = value_loss(self.values(batch), old_values, returns, clip=self._clip)
        loss = aggregate(losses, batch.mask, torch.tensor(1 / max(total_tokens, 1)))
        self.engine.backward(loss * self._strategy.world_size)  # DeepSpeed averages over the ranks
        errors = returns - old_values
        return {
            "value_loss": loss.detach(),
            "value": (old_values * batch.mask).sum(),
            "return": (returns * batch.mask).sum(),
            "return_squared": (returns.square() * batch.mask).sum(),
            "value_error": (errors * batch.mask).sum(),
            "value_error_squared": (errors.square() * batch.mask).sum(),
        }
