"""The way of gradients to an optimizer, which can be shut (torch and DeepSpeed; runs inside the trainer's ranks).

DeepSpeed (0.19.6) looks for gradients that are not finite by itself with bf16 and ZeRO 1 and 2, with fp16 always, and never
with fp32 or with bf16 and ZeRO-3. Its optimizers have all that leaving an update out takes, though: gradients are
dropped, schedule and step counts stay, ``skipped_steps`` counts. Here the decision is made outside and handed to them.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor


class Gate:
    """Before the optimizer of one DeepSpeed engine. Every rank must call every method."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._optimizer = engine.optimizer
        # The optimizer's own look, where it takes one, would undo the decision that is handed to it in ``overflow``.
        self._optimizer.check_overflow = lambda *_, **__: None

    @property
    def loss_scaled(self) -> bool:
        """Whether losses are scaled, so that gradients overflow now and then until the scale fits."""
        return bool(self._engine.fp16_enabled())

    def norm(self) -> Tensor:
        """Norm of the gradients of all ranks, before clipping; after the update's last backward pass.

        It is not finite if any gradient is not, or if they are so large that their squares overflow.
        """
        scaled = torch.stack(self._group_norms())
        # DeepSpeed writes -1 for a group's norm that is not finite, and would clip by what it makes of that.
        return torch.linalg.vector_norm(torch.where(scaled < 0, torch.nan, scaled)) / self._optimizer.loss_scale

    def _group_norms(self) -> list[Tensor]:
        """Of each of the optimizer's groups of parameters, over all ranks and with the loss scale."""
        optimizer = self._optimizer
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            norms: list[Tensor] = optimizer._get_norm_groups()
            return norms
        groups = optimizer.params_in_partition
        if optimizer.cpu_offload:
            return [optimizer.complete_grad_norm_calculation_for_cpu_offload(group) for group in groups]
        return [
            optimizer.get_grad_norm_direct(optimizer.averaged_gradients[i], group) for i, group in enumerate(groups)
        ]

    def step(self, *, sound: bool) -> None:
        """Let the gradients through, or drop them: weights, moments and schedule stay as they were."""
        self._optimizer.overflow = not sound
        self._engine.step()
