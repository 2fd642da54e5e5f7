"""What a family of models requires of a trainer, from its configuration and class (runs inside the trainer's ranks)."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

PACKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers (``layer_types`` of a configuration) that keep packed sequences apart."""


class UnfitModel(ValueError):
    """The model cannot be trained as configured; the message names its architecture and the reason."""


def architecture(config: Any) -> str:
    """The name of the model's architecture in its configuration."""
    return next(iter(config.architectures or ()), type(config).__name__)


def rows_attention(config: Any) -> str:
    """transformers' attention for a family that reads sequences as rows."""
    return "sdpa" if _model_class(config)._supports_sdpa else "eager"


def why_by_rows(config: Any) -> str | None:
    """The reason why the family cannot read packed sequences, or None if it can.

    Raises :class:`UnfitModel` for a model that is not a causal language model.
    """
    others = sorted(set(config.get_text_config().to_dict().get("layer_types") or ()) - PACKED_LAYERS)
    if others:
        return f"layers of kind {', '.join(others)} run on past the end of a packed sequence"
    model = _model_class(config)
    if not model._supports_attention_backend:
        return "its attention is its own and does not know packed sequences"
    if _has_convolutions(model):
        return "its convolutions run on past the end of a packed sequence"
    return None


def _model_class(config: Any) -> Any:
    """The class of a configuration's causal language model, including classes whose code comes with the model."""
    name = "AutoModelForCausalLM"
    remote = config.to_dict().get("auto_map") or {}
    if name in remote:
        return get_class_from_dynamic_module(remote[name], config.name_or_path)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnfitModel(f"{architecture(config)}: transformers has no causal language model of this kind")
    return AutoModelForCausalLM._model_mapping[type(config)]


def _has_convolutions(model: type[nn.Module]) -> bool:
    """Whether the family's file defines layers with one-dimensional convolutions (state spaces, linear attention)."""
    return "nn.Conv1d(" in inspect.getsource(sys.modules[model.__module__])
