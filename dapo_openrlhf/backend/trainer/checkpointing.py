"""Gradient checkpointing of a model that is in evaluation mode (torch; runs inside the trainer's ranks).

transformers checkpoints layers only in training mode, in which dropout and the noise of routers are on as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dapo_openrlhf.backend.trainer.families import UnfitModel


def install(model: Any) -> None:
    """Recompute decoder layers in the backward pass instead of keeping activations. Raises :class:`UnfitModel`."""
    inside: set[torch.nn.Module] = set()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer not in inside:
            layer.forward = functools.partial(_checkpointed, layer.forward)
            inside.update(layer.modules())
    if not inside:
        raise UnfitModel(
            f"actor.gradient_checkpointing_enable: {type(model).__name__} has no layers that transformers can checkpoint"
        )


def _checkpointed(forward: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **settings)
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **settings)
