"""The data type in which gradients are accumulated over an update's micro-batches (runs in every trainer rank).

Each of thirty micro-batches contributes a thirtieth of the gradient; in bfloat16, with 8 bits of mantissa, the last
contributions are lost in rounding. DeepSpeed (0.19.6) has ``data_types.grad_accum_dtype`` for this. ZeRO-3 obeys it.
ZeRO-2 passes it to ``get_all_grad_tensors``, which ignores it. ZeRO-1 with bfloat16 then uses another optimizer, whose
gradients and gradient norm are not accessible; the configuration refuses that combination.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def obey_accumulation_type(optimizer: Any) -> None:
    """Make a ZeRO-2 optimizer accumulate in the data type that it was given; other optimizers already do."""
    if not hasattr(optimizer, "get_all_grad_tensors") or not optimizer.partition_gradients:
        return
    gradients_of = optimizer.get_all_grad_tensors

    def in_their_type(tensor_list: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The first micro-batch's gradients become the sum, so only they need the sum's data type."""
        gradients: list[Tensor] = gradients_of(tensor_list, dtype)
        sums = {id(group): optimizer.all_grad_tensors.get(i) for i, group in enumerate(optimizer.params_in_partition)}
        return gradients if sums[id(tensor_list)] is not None else [gradient.to(dtype) for gradient in gradients]

    optimizer.get_all_grad_tensors = in_their_type
