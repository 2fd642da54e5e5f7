"""Linear layers in float32 through oneDNN on a CPU (torch; runs inside the trainer's ranks).

torch computes products in float32 with MKL, which uses only AVX2 on processors other than Intel's, while oneDNN uses
what the processor has. On an AMD EPYC with AVX-512 a forward pass and its input gradient are 2.2 times as fast, the
weight gradient 1.5 to 2 times. In bfloat16 torch uses oneDNN by itself.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn


def install(model: nn.Module) -> None:
    """Make the model's linear layers in float32 compute through oneDNN; modules and parameters stay the same."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]  # of this one module, not of its class


def _forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    output: Tensor = _Linear.apply(inputs, module.weight, module.bias)  # type: ignore[no-untyped-call]  # the stub has no types
    return output


class _Linear(torch.autograd.Function):
    """Computes ``inputs @ weight.T + bias`` for inputs [..., in], weight [out, in]."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        product = _product(inputs, weight, bias)
        # It is a view of rows, and torch lets nobody change a view in place that comes from here; some families do that.
        output: Tensor = torch.ops.aten._unsafe_view(product, product.shape)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if for_inputs else None,
            _product(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product
