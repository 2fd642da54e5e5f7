"""What the controller asks of a rollout worker: the seam for another engine than vLLM.

:class:`~dapo_openrlhf.backend.engine.actor.EngineActor` is the one there is. Another one is an actor class with these methods
in its place in ``backend/run/workers.py``, and an end of its own for the weight sync in ``backend/transfer/receivers/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.backend.messages import GenerationReport, GroupTexts, GroupTokens, WeightAck, WeightManifest
from dapo_openrlhf.pipeline.ports import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdates:
    """How a rollout worker takes new weights."""

    in_flight: bool = True
    """Between two steps of the groups in flight; otherwise when all of them are done, and groups that come meanwhile wait."""
    recompute_kv_cache: bool = False
    """In flight, the KV cache of the tokens so far is made anew by the new weights; otherwise it is kept."""


IN_FLIGHT = WeightUpdates()


class RolloutWorker(Protocol):
    """An actor that generates with dedicated weights. All methods are called through Ray, many at once."""

    async def ready(self) -> int:
        """The process id; answers once the model is loaded."""
        ...

    async def generate(
        self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling
    ) -> tuple[GenerationReport, GroupTokens, GroupTexts] | tuple[None, None, None]:
        """Sample a group; nothing comes of one that is cut too early. Raises ``messages.BadPrompt``."""
        ...

    async def cut(self, group_id: str) -> None:
        """End a group with the tokens it has."""
        ...

    async def sample_random(self, lengths: Sequence[int], new_tokens: int, temperature: float) -> list[GroupTokens]:
        """A response of at most ``new_tokens`` to a random prompt of each of the ``lengths``."""
        ...

    async def load_weights(self, version: int, manifest: WeightManifest, buffer: NDArray[np.uint8]) -> WeightAck:
        """Replace the weights by those in a flat buffer; tokens of later steps carry ``version``."""
        ...

    async def join_transfer(self, init_info: Mapping[str, Any]) -> None:
        """Meet the trainer for transfers between GPUs. Blocks until all engines have."""
        ...

    async def receive_weights(self, version: int, update_info: Mapping[str, Any]) -> WeightAck:
        """Replace the weights by those that a trainer's GPU holds; tokens of later steps carry ``version``."""
        ...

    async def phase(self) -> str:
        """What it did last for a publication, for the error message of a late one; answers while it is busy."""
        ...
