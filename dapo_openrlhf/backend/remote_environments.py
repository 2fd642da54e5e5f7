"""Environments in other actors, as an engine calls them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Observation, Step
from dapo_openrlhf.environments.process import DIED, TIMEOUT
from dapo_openrlhf.types import Prompt


class RemoteEnvironments:
    """``Environments`` behind the handles of their actors; it can be sent to other actors.

    An episode's name tells which actor has it, so every caller finds it.
    """

    def __init__(self, actors: Sequence[Any], *, patience: float) -> None:
        """``patience``: seconds after which an actor that does not answer counts as hung; its own deadlines come first."""
        self._actors = [*actors]
        self._patience = patience

    async def open(self, episode: str, prompt: Prompt) -> Observation:
        """Begin an episode. Raises :class:`EnvironmentFailed`, as does :meth:`step`."""
        # An environment sees text, and the ids of a long prompt would travel for nothing.
        observation: Observation = await self._answer(
            episode, self._actor(episode).open.remote(episode, replace(prompt, token_ids=()))
        )
        return observation

    async def step(self, episode: str, action: Action) -> Step:
        """Answer an action of an open episode."""
        step: Step = await self._answer(episode, self._actor(episode).step.remote(episode, action))
        return step

    async def close(self, episode: str) -> None:
        """Give up an episode, without waiting until it has stopped."""
        self._actor(episode).close.remote(episode)

    def _actor(self, episode: str) -> Any:
        return self._actors[zlib.crc32(episode.encode()) % len(self._actors)]

    async def _answer(self, episode: str, call: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._patience):
                return await call
        except TimeoutError:
            message = (
                f"the environment actor of {episode} did not answer within {self._patience:g} s (environment.timeout)"
            )
            raise EnvironmentFailed(TIMEOUT, message) from None
        except RayActorError as error:
            raise EnvironmentFailed(DIED, f"the environment actor of {episode} died: {error}") from None
        except RayTaskError as error:
            if isinstance(error.cause, EnvironmentFailed):
                raise error.cause from None
            raise
