"""Values of the states before given tokens (torch; runs inside the trainer's ranks)."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor

from dapo_openrlhf.backend.trainer import attention, rows


def install(model: Any, *, new_head: bool, by_rows: bool = False) -> None:
    """Make OpenRLHF's critic ``model(...)`` compute :func:`token_values` from now on.

    A new head is initialised at random with standard deviation 1 / (hidden size + 1), as in OpenRLHF: values near 0.
    ``by_rows``: the model reads sequences side by side, see :mod:`rows`.
    """
    model.forward = types.MethodType(token_values_by_rows if by_rows else token_values, model)
    if new_head:
        weight = model.get_submodule(model.value_head_prefix).weight
        with GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
            torch.nn.init.normal_(weight, std=1 / (model.config.get_text_config().hidden_size + 1))


def token_values(
    model: Any, *, input_ids: Tensor, positions: Tensor, buckets: Sequence[rows.Bucket] | None = None, **inputs: Any
) -> Tensor:
    """Value [R], float32, of each state before a response token; arguments as for :func:`logprobs.token_logprobs`."""
    with attention.packed(buckets):
        hidden = model.base_model(input_ids=input_ids, use_cache=False, **inputs)[0]
    head = model.get_submodule(model.value_head_prefix)
    values: Tensor = head(hidden.flatten(0, 1)[positions]).squeeze(-1).float()
    return values


def token_values_by_rows(
    model: Any, *, input_ids: Tensor, position_ids: Tensor, positions: Tensor, **_packed: Any
) -> Tensor:
    """The same as :func:`token_values`, with packed sequences of similar length side by side."""
    parts = rows.parts(input_ids, position_ids, positions)
    return torch.cat([token_values(model, input_ids=part.input_ids, positions=part.positions) for part in parts])
