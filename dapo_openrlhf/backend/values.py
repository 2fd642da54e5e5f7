"""Values of the states before given tokens (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

import types
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor


def install(model: Any, *, new_head: bool) -> None:
    """Let OpenRLHF's critic ``model(...)`` compute :func:`token_values` from now on.

    A new head starts at random with standard deviation 1 / (hidden size + 1), as OpenRLHF's: values near 0.
    """
    model.forward = types.MethodType(token_values, model)
    if new_head:
        weight = model.get_submodule(model.value_head_prefix).weight
        with GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
            torch.nn.init.normal_(weight, std=1 / (model.config.get_text_config().hidden_size + 1))


def token_values(model: Any, *, input_ids: Tensor, position_ids: Tensor, positions: Tensor, **attention: Any) -> Tensor:
    """Value [R], float32, of each state before a response token; arguments as in :func:`logprobs.token_logprobs`."""
    hidden = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention)[0]
    head = model.get_submodule(model.value_head_prefix)
    return head(hidden[0][positions]).squeeze(-1).float()
