"""The interface of a rollout worker as the controller uses it; another engine than vLLM would implement it.

:class:`~dapo_openrlhf.backend.engine.actor.EngineActor` is the only implementation. Another one would be an actor class
with these methods, used in its place in ``backend/run/workers.py``; ``backend/transfer/group.py`` is a member's end of a
transfer group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.backend.messages import GenerationReport, GroupTexts, GroupTokens, Meeting, WeightAck, WeightLayout
from dapo_openrlhf.environments.messages import Environments
from dapo_openrlhf.pipeline.ports import Health, Sampling
from dapo_openrlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdates:
    """How a rollout worker takes new weights."""

    in_flight: bool = True
    """Load weights between two steps of the groups in flight; otherwise after all of these are done, what their
    environments do included, and new groups wait meanwhile."""
    recompute_kv_cache: bool = False
    """With ``in_flight``, recompute the KV cache of the tokens so far with the new weights; otherwise the cache is
    kept."""


IN_FLIGHT = WeightUpdates()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRules:
    """What ends a rollout with an environment, and which one was right."""

    max_turns: int
    """Most actions of a rollout, at least 1."""
    max_action_tokens: int | None = None
    """Longest action, in tokens, until the environment says otherwise; None sets no limit of its own."""
    max_length: int
    """Longest context, in tokens: prompt, actions and observations."""
    correct_from: float
    """Lowest score of a right rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """How a rollout worker plays episodes."""

    name: str
    """The name of the environment's file, for messages."""
    environments: Environments
    """Where the environments are; it is sent to the worker."""
    rules: EpisodeRules


class RolloutWorker(Protocol):
    """An actor that generates with its own copy of the weights. All methods are called through Ray, many at once."""

    async def ready(self) -> int:
        """The process id. Returns once the model is loaded."""
        ...

    async def generate(
        self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling
    ) -> tuple[GenerationReport, GroupTokens, GroupTexts] | tuple[None, None, None]:
        """Sample a group, or return (None, None, None) if it is cut too early. Raises ``messages.BadPrompt``."""
        ...

    async def play(
        self, group_id: str, prompt: Prompt, sampling: Sampling
    ) -> tuple[GenerationReport, GroupTokens, GroupTexts] | tuple[None, None, None]:
        """As ``generate``, with an environment for each rollout. Raises also ``EnvironmentFailed``."""
        ...

    async def cut(self, group_id: str) -> None:
        """End a group with the tokens generated so far."""
        ...

    async def sample_random(self, lengths: Sequence[int], new_tokens: int, temperature: float) -> list[GroupTokens]:
        """Sample a response of at most ``new_tokens`` tokens to a random prompt of each of ``lengths``."""
        ...

    async def load_weights(self, version: int, layout: WeightLayout, *buckets: NDArray[np.uint8]) -> WeightAck:
        """Replace the weights by those in the buckets; tokens of later steps carry ``version``."""
        ...

    async def join_transfer(self, meeting: Meeting, first: int, size: int) -> None:
        """Join a transfer group of ``size`` members, of which this worker's first process is number ``first``.

        Blocks until all members have joined; raises ``messages.TransferAborted`` if they do not.
        """
        ...

    async def receive_weights(self, version: int, layout: WeightLayout) -> WeightAck:
        """Replace the weights by those sent to the transfer group; tokens of later steps carry ``version``.

        If it raises ``messages.TransferAborted``, the worker generates nothing until weights are loaded.
        """
        ...

    async def phase(self) -> str:
        """The worker's last phase of a publication, for the error message if it is late. Answers even while busy."""
        ...

    async def health(self) -> Health:
        """What the worker is doing, and how many steps of generation it has begun and ended. Answers even while busy."""
        ...
