"""What actors and the controller hand each other beside the pipeline's own messages (numpy and standard library)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.types import Span


class BadPrompt(ValueError):
    """The prompt itself is at fault, and would be in any engine; ``reason`` names the counter it adds to."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTokens:
    """The tokens of one group, as flat arrays: N is the number of response tokens of all G responses."""

    prompt_ids: NDArray[np.int32]
    """[prompt_length]"""
    response_ids: NDArray[np.int32]
    """[N], response after response."""
    rollout_logprobs: NDArray[np.float32]
    """[N], of the sampled tokens under the weights and temperature that sampled them."""
    offsets: NDArray[np.int64]
    """[G + 1]: response i is ``[offsets[i], offsets[i + 1])``."""

    def response(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Token ids and log-probs of one response."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.response_ids[span], self.rollout_logprobs[span]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTexts:
    """The texts of one group."""

    responses: tuple[str, ...]
    """The responses without the tokens that end or pad them."""
    queries: tuple[str, ...] = ()
    """Prompt and response together, special tokens included; empty where no reward looks at them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The absolute difference between two sets of log-probs of the same tokens."""

    mean: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a trainer's log-probs are from its model's own and from the engines'."""

    architecture: str
    eps: float
    """The distance from 1 to the next larger number in the type that is computed in."""
    packed: Difference
    """Between the trainer, which packs sequences, and the model's own forward pass, one sequence at a time."""
    rounding: Difference
    """Between that own forward pass and the same with one more rounding error in each linear layer."""
    engines: tuple[Difference, ...]
    """Between the trainer and each engine, for what that engine sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationReport:
    """An engine's answer about one group, without the tokens; fields as in ``types.Generation``."""

    prompt_length: int
    lengths: tuple[int, ...]
    truncated: tuple[bool, ...]
    cut: tuple[bool, ...]
    oldest_version: int
    newest_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """How a flat buffer of bytes is cut into named tensors."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    """Names of torch dtypes, such as ``bfloat16``."""
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    """Byte offsets, one more than names; each a multiple of 64."""
    checksum: int
    """XXH3-64 of the whole buffer."""

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.offsets[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """Which tensors a publication consists of, in the order in which they travel from GPU to GPU."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    """Names of torch dtypes, such as ``bfloat16``."""
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    """Size of each tensor in bytes."""

    @property
    def bytes(self) -> int:
        """All tensors together."""
        return sum(self.sizes)

    def update_info(self, **more: Any) -> dict[str, Any]:
        """What vLLM's workers are told of a transfer, under vLLM's names; they take of it what their version knows."""
        return {
            "names": list(self.names),
            "dtype_names": list(self.dtypes),
            "shapes": [list(shape) for shape in self.shapes],
            **PACKED,
            **more,
        }


PACKED: Mapping[str, Any] = {"packed": True, "packed_buffer_size_bytes": 256 << 20, "packed_num_buffers": 2}
"""What both ends of a transfer between GPUs must agree on, under vLLM's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedWeights:
    """Weights in memory that other processes on the same GPU may read."""

    checksum: int
    handles: Mapping[str, tuple[Any, ...]]
    """CUDA IPC handle of the memory by the GPU's UUID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAck:
    """An engine's answer that it generates with a version now."""

    version: int
    checksum: int
    """The checksum of the bytes that the engine received."""
    spans: tuple[Span, ...]
    """What the engine did since its last acknowledgement; the last span is this loading."""
