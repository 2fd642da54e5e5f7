"""A trainer's whole parameters, one after the other, however DeepSpeed keeps them (runs in every trainer rank)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

BUCKET_BYTES = 512 << 20
"""ZeRO-3 parameters brought together at once: one collective for many, and no more memory than this on top."""


def whole_shape(parameter: Parameter) -> tuple[int, ...]:
    """Shape of a parameter, of which ZeRO-3 may keep a part only."""
    shape: Sequence[int] = parameter.ds_shape if hasattr(parameter, "ds_id") else parameter.shape
    return tuple(shape)


def whole_parameters(module: Module, *, bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
    """Yield names and whole tensors, in the order of ``named_parameters``.

    Under ZeRO-3 every rank must exhaust this, since gathering is a collective; a tensor's memory stays for as long as
    somebody holds the tensor. Each tensor is ready on the CUDA stream that is current when it is asked for. Under ZeRO-1
    and 2 tensors are the parameters themselves.
    """
    import torch
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    named = list(module.named_parameters())
    sizes = [parameter.element_size() * whole_numel(parameter) for _, parameter in named]
    for first, last in buckets(sizes, bucket_bytes):
        bucket = named[first:last]
        partitioned = any(hasattr(parameter, "ds_id") for _, parameter in bucket)
        with GatheredParameters([parameter for _, parameter in bucket], enabled=partitioned):
            gathered = torch.cuda.current_stream().record_event() if partitioned and torch.cuda.is_available() else None
            for name, parameter in bucket:
                tensor = parameter.detach()
                if gathered is not None:  # vLLM packs on streams in turn: this may be another one by now
                    torch.cuda.current_stream().wait_event(gathered)
                    tensor.record_stream(torch.cuda.current_stream())
                yield name, tensor


def whole_numel(parameter: Parameter) -> int:
    """Elements of a parameter, of which ZeRO-3 may keep a part only."""
    return int(parameter.ds_numel) if hasattr(parameter, "ds_id") else parameter.numel()


def buckets(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Cut a sequence of sizes into runs [first, last) of at most ``limit`` in all; a larger one is a run by itself."""
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if index > first and total + size > limit:
            yield first, index
            first, total = index, 0
        total += size
    if first < len(sizes):
        yield first, len(sizes)
