"""Environment actors: they keep the processes in which a user's environments run, for the engines to call."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayError

from dapo_openrlhf.backend.remote_environments import RemoteEnvironments
from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import Action, Observation, Step
from dapo_openrlhf.environments.process import MOST_WAITING
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.rewards.printed import Limited
from dapo_openrlhf.types import Prompt

PROCESSES_PER_ACTOR = 8
"""Most environment processes that one actor looks after."""
CONCURRENT_CALLS = 1 << 16
PRINTED_SECONDS = 2.0
"""Pause between two questions for what environments have printed."""
LAST_SECONDS = 3.0
"""Seconds that an actor may take to say what was printed at the end of a run."""
ANSWER_SECONDS = 30.0
"""Seconds that an actor may take to say what was printed, or to pass on an answer beyond the environment's own limit."""


class EnvironmentActor:
    """A host of environments that other actors can call, many at once."""

    def __init__(self, *, settings: EnvironmentSettings) -> None:
        self._settings = settings

    @cached_property
    def _host(self) -> EnvironmentHost:
        return EnvironmentHost(self._settings)  # it needs the event loop that the methods run in

    async def ready(self) -> list[int]:
        """The processes' ids, once the file is loaded. Raises ``EnvironmentUnavailable``."""
        return await self._host.ready()

    async def open(self, episode: str, prompt: Prompt) -> Observation:
        """See ``Environments``; the same holds for the next two."""
        return await self._host.open(episode, prompt)

    async def step(self, episode: str, action: Action) -> Step:
        """Answer an action."""
        return await self._host.step(episode, action)

    async def close(self, episode: str) -> None:
        """Give up an episode."""
        await self._host.close(episode)

    async def printed(self) -> list[str]:
        """Some of the lines that environments have printed since the last call."""
        return self._host.printed()


class EnvironmentPool:
    """Starts environment actors and passes on what environments print."""

    def __init__(self, settings: EnvironmentSettings, *, say: Callable[[str], None] = print) -> None:
        """``say`` receives what environments print, prefixed and limited in rate."""
        actors = math.ceil(settings.processes / PROCESSES_PER_ACTOR)
        share, rest = divmod(settings.processes, actors)
        self._print = Limited(say, time.monotonic, prefix="environment: ")
        # An actor that has died is started again: its episodes fail, those after them do not.
        actor_class = ray.remote(EnvironmentActor).options(
            num_cpus=0, max_restarts=-1, max_concurrency=CONCURRENT_CALLS
        )
        self._actors: list[Any] = [
            actor_class.remote(settings=replace(settings, processes=share + (index < rest))) for index in range(actors)
        ]
        patience = MOST_WAITING * settings.timeout + settings.start_timeout + ANSWER_SECONDS
        self.environments = RemoteEnvironments(self._actors, patience=patience)
        """What engines call."""

    def ready(self) -> list[ray.ObjectRef[Any]]:
        """References that resolve once the environment is loaded in every process."""
        return [actor.ready.remote() for actor in self._actors]

    async def supervise(self) -> None:
        """Pass on what environments print, until cancelled."""
        while True:
            await asyncio.sleep(PRINTED_SECONDS)
            await self.pass_on(ANSWER_SECONDS)

    async def pass_on(self, seconds: float = LAST_SECONDS) -> None:
        """Pass on what environments have printed since the last time, with ``seconds`` for each actor to answer."""
        for actor in self._actors:
            for line in await self._printed(actor, seconds):
                self._print(line)

    async def _printed(self, actor: Any, seconds: float) -> list[str]:
        try:
            async with asyncio.timeout(seconds):
                lines: list[str] = await actor.printed.remote()
                return lines
        except (RayError, TimeoutError):  # whoever waits for an episode is told
            return []
