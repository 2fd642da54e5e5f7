"""Layers of the package liger-kernel in place of transformers' own (torch; runs inside the trainer's ranks).

As OpenRLHF does through ``AutoLigerKernelForCausalLM``, a family's norms, rotary embeddings and gated layers are replaced
before its model is made, for all models of that family in this process. Its fused loss is left out: it would replace the
family's ``forward``, in which :mod:`own_forward` computes the log-probabilities chunk by chunk.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from dapo_openrlhf.backend.trainer.families import UnfitModel, architecture

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Options of the package's functions that replace losses, or the ``forward`` around them."""


def install(config: Any) -> None:
    """Replace the layers of the configuration's family. Raises :class:`UnfitModel` for one that the package does not know."""
    patches = importlib.import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    if config.model_type not in patches:
        raise UnfitModel(
            f"ds.use_liger_kernel: liger-kernel has no layers for {architecture(config)} (model_type {config.model_type}); "
            "use false"
        )
    patch = patches[config.model_type]
    options = inspect.signature(patch).parameters
    patch(**{name: False for name in LOSSES if name in options})
