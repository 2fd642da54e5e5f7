"""The way of gradients to an optimizer, which can be shut (torch and DeepSpeed; runs inside the trainer's ranks).

DeepSpeed (0.19.6) looks for gradients that are not finite by itself with bf16 and ZeRO 1 and 2, with fp16 always, and never
with fp32 or with bf16 and ZeRO-3. Its optimizers have all that leaving an update out takes, though: gradients are
dropped, schedule and step counts stay, ``skipped_steps`` counts. Here the decision is made outside and handed to them.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import get_global_norm_of_tensors
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
        optimizer = self._optimizer
        match optimizer:
            case BF16_Optimizer():
                return get_global_norm_of_tensors(
                    input_tensors=optimizer.get_grads_for_norm()[0],
                    mpu=optimizer.mpu,
                    norm_type=optimizer.norm_type,
                    use_graph=optimizer.graph_harvesting,
                )
            case DeepSpeedZeroOptimizer_Stage3():
                scaled = torch.linalg.vector_norm(torch.stack(optimizer._get_norm_groups()))
            case _:
                scaled = optimizer.scaled_global_norm()
        return scaled / optimizer.loss_scale

    def step(self, *, sound: bool) -> None:
        """Let the gradients through, or drop them: weights, moments and schedule stay as they were."""
        if isinstance(self._optimizer, BF16_Optimizer):  # which knows of no overflow
            if sound:
                self._engine.step()
            else:
                self._optimizer.zero_grad()
                self._engine.skipped_steps += 1
            return
        self._optimizer.overflow = not sound
        self._engine.step()
