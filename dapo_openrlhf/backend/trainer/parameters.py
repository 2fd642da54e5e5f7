"""A trainer's whole tensors under their checkpoint's names, under any ZeRO stage (runs in every trainer rank)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.trainer.checkpoint_names import Unit, stored_tensors, units

BUCKET_BYTES = 512 << 20
"""Bytes of ZeRO-3 parameters that are gathered at once: one collective for many, and at most this much additional
memory."""


class Published:
    """The tensors of a publication. ``model`` is the module of transformers inside DeepSpeed's engine."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stored: dict[str, Parameter] = stored_tensors(model)
        self._units = units(model)
        self.layout = self._layout()

    def tensors(self, *, bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
        """Yield names and whole tensors, in the order of the layout.

        Under ZeRO-3 every rank must exhaust this iterator, since gathering is a collective; a tensor's memory is kept
        as long as the tensor is referenced. Each tensor is ready on the CUDA stream that is current when the tensor is
        requested. Under ZeRO-1 and 2 most tensors are the parameters themselves.
        """
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        sizes = [sum(_bytes(self._stored[name]) for name in unit.sources) for unit in self._units]
        for first, last in buckets(sizes, bucket_bytes):
            bucket = self._units[first:last]
            partitioned = [p for unit in bucket for name in unit.sources if hasattr(p := self._stored[name], "ds_id")]
            with GatheredParameters(partitioned, enabled=bool(partitioned)):
                gathered = _Ready(pending=bool(partitioned))
                for unit in bucket:
                    yield from self._converted(unit, gathered)

    def _converted(self, unit: Unit, gathered: _Ready) -> Iterator[tuple[str, Tensor]]:
        sources = {name: self._stored[name].detach() for name in unit.sources}
        for tensor in sources.values():
            gathered.use(tensor)
        converted = unit.convert(sources, self._model)
        ready = _Ready(pending=unit.conversion is not None)
        for name, tensor in converted:
            ready.use(tensor)
            yield name, tensor

    def _layout(self) -> WeightLayout:
        def shape_only(name: str) -> Tensor:
            tensor = self._stored[name]
            return torch.empty(whole_shape(tensor), dtype=tensor.dtype, device="meta")

        named = [
            (name, tensor)
            for unit in self._units
            for name, tensor in unit.convert({source: shape_only(source) for source in unit.sources}, self._model)
        ]
        return WeightLayout(
            names=tuple(name for name, _ in named),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in named),
            shapes=tuple(tuple(tensor.shape) for _, tensor in named),
            sizes=tuple(tensor.nbytes for _, tensor in named),
        )


class _Ready:
    """Makes streams wait for the work that another stream has queued so far; vLLM packs on several streams in turn."""

    def __init__(self, *, pending: bool) -> None:
        """``pending``: whether there is work on the current stream that later users must wait for."""
        self._event = torch.cuda.current_stream().record_event() if pending and torch.cuda.is_available() else None

    def use(self, tensor: Tensor) -> None:
        """Make the current stream wait, and keep the tensor's memory until the stream's work with it is done."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
            tensor.record_stream(torch.cuda.current_stream())


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of a whole parameter, of which ZeRO-3 may keep only a part."""
    shape: Sequence[int] = parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape
    return tuple(shape)


def whole_numel(parameter: Any) -> int:
    """Number of elements of a whole parameter, of which ZeRO-3 may keep only a part."""
    return int(parameter.ds_numel if hasattr(parameter, "ds_id") else parameter.numel())


def _bytes(parameter: Parameter) -> int:
    return parameter.element_size() * whole_numel(parameter)


def buckets(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Divide sizes into runs [first, last) of at most ``limit`` in total; a larger size is a run by itself."""
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if index > first and total + size > limit:
            yield first, index
            first, total = index, 0
        total += size
    if first < len(sizes):
        yield first, len(sizes)
