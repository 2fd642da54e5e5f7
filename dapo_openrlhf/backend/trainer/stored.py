"""A model's tensors as its checkpoint holds them, with the adapters added in (torch; runs in every trainer rank).

peft puts an adapter around a linear layer ``q_proj``, whose tensors are then called ``q_proj.base_layer.weight``,
``q_proj.lora_A.default.weight`` and ``q_proj.lora_B.default.weight``. Engines and readers of a checkpoint know only
``q_proj.weight``: the sum of all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

ADAPTER = "default"
"""The name by which peft knows the only adapter of a layer here."""
BASE, DOWN, UP = ".base_layer.", f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
PEFT_PREFIX = "base_model.model."
"""Begins the names of tensors in peft's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is added to a weight: scale * up @ down (arXiv 2106.09685, section 4.1)."""

    down: Tensor
    """A [rank, inputs]."""
    up: Tensor
    """B [outputs, rank]."""
    scale: float
    transposed: bool
    """Whether the weight is [inputs, outputs], as those of transformers' ``Conv1D`` are."""

    def added_to(self, weight: Tensor) -> Tensor:
        """The sum in the weight's data type, computed in float32; the weight stays as it is."""
        change = (self.up.detach().float() @ self.down.detach().float()) * self.scale
        return (weight.float() + (change.T if self.transposed else change)).to(weight.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a checkpoint."""

    held: Tensor
    """The parameter or buffer, of which ZeRO-3 may keep only a part."""
    adapter: Adapter | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors of the module that it is made of."""
        return (self.held,) if self.adapter is None else (self.held, self.adapter.down, self.adapter.up)

    @property
    def bytes(self) -> int:
        """Size of its whole parts."""
        return sum(part.element_size() * whole_numel(part) for part in self.parts)

    def of(self, others: Mapping[int, Tensor]) -> StoredTensor:
        """The same of other values of its parts, by the identities (``id``) of the parts."""
        if self.adapter is None:
            return replace(self, held=others.get(id(self.held), self.held))
        held, down, up = (others.get(id(part), part) for part in self.parts)
        return replace(self, held=held, adapter=replace(self.adapter, down=down, up=up))

    def whole(self) -> Tensor:
        """The tensor, whose parts must be whole: the parameter itself, or a new one with the adapter added."""
        held = self.held.detach()
        return held if self.adapter is None else self.adapter.added_to(held)


def stored_tensors(model: Any) -> dict[str, StoredTensor]:
    """Parameters and buffers that belong in a checkpoint, in the model's order; a shared tensor has only one name."""
    left_out = set(model._keys_to_ignore_on_save or ())
    tied_to = model.all_tied_weights_keys
    first: dict[int, str] = {}
    tensors = {name: tensor for name, tensor in _with_adapters(model).items() if name not in left_out}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0] in tied_to):  # tied names last
        first.setdefault(id(tensor.held), name)
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor.held)] == name}


def adapter_tensors(model: Any) -> dict[str, StoredTensor]:
    """The tensors of the adapters by their names in peft's files; none for a model without."""
    return {
        f"{PEFT_PREFIX}{name.replace(f'.{ADAPTER}.', '.')}": StoredTensor(held=tensor)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name.endswith((DOWN, UP))
    }


def _with_adapters(model: Any) -> dict[str, StoredTensor]:
    held = model.state_dict(keep_vars=True)
    tensors = {}
    for name, tensor in held.items():
        if name.endswith((DOWN, UP)):
            continue
        layer, _, own = name.rpartition(BASE)
        adapter = None
        if own == "weight":
            module = model.get_submodule(layer)
            adapter = Adapter(
                down=held[layer + DOWN],
                up=held[layer + UP],
                scale=module.scaling[ADAPTER],
                transposed=module.fan_in_fan_out,
            )
        tensors[f"{layer}.{own}" if layer else name] = StoredTensor(held=tensor, adapter=adapter)
    return tensors


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of a whole parameter, of which ZeRO-3 may keep only a part."""
    shape: Sequence[int] = parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape
    return tuple(shape)


def whole_numel(parameter: Any) -> int:
    """Number of elements of a whole parameter, of which ZeRO-3 may keep only a part."""
    return int(parameter.ds_numel if hasattr(parameter, "ds_id") else parameter.numel())
