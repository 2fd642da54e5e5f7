"""A trainer's whole tensors under their checkpoint's names, under any ZeRO stage (runs in every trainer rank)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.trainer.checkpoint_names import Unit, units
from dapo_openrlhf.backend.trainer.stored import stored_tensors, whole_shape

BUCKET_BYTES = 512 << 20
"""Bytes of ZeRO-3 parameters that are gathered at once: one collective for many, and at most this much additional
memory."""


class Published:
    """The tensors of a publication. ``model`` is the module of transformers inside DeepSpeed's engine."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stored = stored_tensors(model)
        self._units = units(model)
        self.layout = self._layout()

    def tensors(self, *, bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
        """Yield names and whole tensors, in the order of the layout.

        Under ZeRO-3 every rank must exhaust this iterator, since gathering is a collective; a tensor's memory is kept
        as long as the tensor is referenced. Each tensor is ready on the CUDA stream that is current when the tensor is
        requested. Under ZeRO-1 and 2 most tensors are the parameters themselves, except those with adapters.
        """
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        sizes = [sum(self._stored[name].bytes for name in unit.sources) for unit in self._units]
        for first, last in buckets(sizes, bucket_bytes):
            bucket = self._units[first:last]
            parts = [part for unit in bucket for name in unit.sources for part in self._stored[name].parts]
            partitioned = [part for part in parts if hasattr(part, "ds_id")]
            with GatheredParameters(partitioned, enabled=bool(partitioned)):
                gathered = _Ready(pending=bool(partitioned))
                for unit in bucket:
                    yield from self._converted(unit, gathered)

    def _converted(self, unit: Unit, gathered: _Ready) -> Iterator[tuple[str, Tensor]]:
        stored = {name: self._stored[name] for name in unit.sources}
        for part in (part for tensor in stored.values() for part in tensor.parts):
            gathered.use(part.detach())
        converted = unit.convert({name: tensor.whole() for name, tensor in stored.items()}, self._model)
        ready = _Ready(pending=unit.conversion is not None or any(tensor.adapter for tensor in stored.values()))
        for name, tensor in converted:
            ready.use(tensor)
            yield name, tensor

    def _layout(self) -> WeightLayout:
        def shape_only(name: str) -> Tensor:
            held = self._stored[name].held
            return torch.empty(whole_shape(held), dtype=held.dtype, device="meta")

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
