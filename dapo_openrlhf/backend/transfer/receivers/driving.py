"""Drives an engine's workers through a publication (imported in the engine's actor only)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dapo_openrlhf.backend.messages import Meeting, WeightLayout
from dapo_openrlhf.backend.transfer.buckets import Unpacking
from dapo_openrlhf.backend.transfer.shared_buffers import HostMemory

Entering = Callable[[str], None]
"""Is told each phase before it begins."""


def join(core: Any, meeting: Meeting, first: int, size: int) -> None:
    """Have an engine core's workers join a transfer group of ``size`` members; ``first`` is worker 0's number in it.

    Raises ``TransferAborted``.
    """
    _raise_first(core.collective_rpc("join_weights", args=(meeting, first, size)))


def receive(core: Any, layout: WeightLayout, entering: Entering) -> int:
    """Have the workers take a publication from their transfer group; returns the checksum of what they loaded.

    Raises ``TransferAborted`` or ``IncompleteWeights``.
    """
    entering("preparing its layers")
    core.collective_rpc("begin_weights", args=(layout,))
    entering("receiving")
    _raise_first(core.collective_rpc("receive_weights"))
    return _ended(core, entering)


def load(core: Any, layout: WeightLayout, buckets: Sequence[NDArray[np.uint8]], entering: Entering) -> int:
    """Have the workers load a publication that is in this process's memory; returns the checksum of what they loaded.

    Raises ``IncompleteWeights``.
    """
    sizes = Unpacking(layout).sizes
    if (found := tuple(len(bucket) for bucket in buckets)) != sizes:
        raise ValueError(f"buckets of {found} bytes arrived, expected {sizes}")
    entering("preparing its layers")
    core.collective_rpc("begin_weights", args=(layout,))
    entering("loading")
    if core.engine_core.vllm_config.parallel_config.world_size == 1:  # the worker is in this process
        for bucket in buckets:
            core.collective_rpc("take_bucket", args=(torch.from_numpy(bucket),))
    else:
        _hand_over(core, buckets)
    return _ended(core, entering)


def _hand_over(core: Any, buckets: Sequence[NDArray[np.uint8]]) -> None:
    """Pass buckets to workers in processes of their own, through memory that they map."""
    memory = HostMemory()
    buffer, handle = memory.allocate(max(map(len, buckets)))
    core.collective_rpc("map_weights", args=(handle,))
    for bucket in buckets:
        buffer[: len(bucket)].copy_(torch.from_numpy(bucket))
        core.collective_rpc("copy_bucket", args=(len(bucket),))


def _ended(core: Any, entering: Entering) -> int:
    entering("processing what it received")
    results: list[int | tuple[Exception, ...]] = core.collective_rpc("end_weights")
    _raise_first(results)
    checksums = {result for result in results if isinstance(result, int)}
    if len(checksums) != 1:
        raise RuntimeError(f"the engine's tensor-parallel workers loaded different weights: checksums {checksums}")
    return checksums.pop()


def _raise_first(results: Sequence[object]) -> None:
    """Raise the first error that a worker returned; see ``worker.py``."""
    for errors in results:
        if isinstance(errors, tuple) and errors:
            raise errors[0]
