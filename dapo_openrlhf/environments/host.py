"""Keeps processes in which a user's environments run, and shares episodes out among them (asyncio).

Opening an episode picks the process with the fewest. A process that is lost is replaced at once; its open episodes fail.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Observation, Step
from dapo_openrlhf.environments.process import DIED, EnvironmentProcess, EnvironmentUnavailable
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.types import Prompt

SWEEP_SECONDS = 5.0
"""Pause between two looks at episodes and processes that nobody uses."""


@dataclass(slots=True)
class _Episode:
    """An open episode."""

    process: EnvironmentProcess
    number: int
    asked: float
    """When it was last asked, or has last answered."""
    busy: bool = True


class EnvironmentHost:
    """Many episodes in a few processes: ``Environments``."""

    def __init__(self, settings: EnvironmentSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the processes. Needs a running event loop. ``clock`` tells how long an episode is idle, in seconds."""
        self._settings, self._clock = settings, clock
        self._processes = [EnvironmentProcess(settings) for _ in range(settings.processes)]
        self._episodes: dict[str, _Episode] = {}
        self._waiting: set[str] = set()  # episodes that a process is sought for
        self._numbers = count(1)
        self._lines: list[str] = []
        self._sweeping = asyncio.ensure_future(self._sweep())

    @property
    def open_episodes(self) -> int:
        """Number of episodes that are open."""
        return len(self._episodes)

    async def ready(self) -> list[int]:
        """The processes' ids, once the file is loaded in each. Raises :class:`EnvironmentUnavailable`."""
        for process in self._processes:
            await asyncio.shield(process.loading)
        return [process.pid for process in self._processes]

    async def open(self, episode: str, prompt: Prompt) -> Observation:
        """Begin an episode under a name that no open episode has. Raises :class:`EnvironmentFailed`."""
        if episode in self._episodes or episode in self._waiting:
            raise ValueError(f"an episode {episode} is open already")
        process = await self._process_for(episode)
        number = next(self._numbers)
        process.episodes[number] = prompt.id
        self._episodes[episode] = _Episode(process, number, self._clock())
        row = asdict(replace(prompt, token_ids=()))
        return Observation(**await self._ask(episode, "open", prompt=row))

    async def step(self, episode: str, action: Action) -> Step:
        """Answer an action of an open episode. Raises :class:`EnvironmentFailed`."""
        if episode not in self._episodes:
            message = (
                f"episode {episode} is not open: it has ended, or its process was lost, or it was closed after "
                f"{self._settings.idle:g} s without an action"
            )
            raise EnvironmentFailed(DIED, message)
        return Step(**await self._ask(episode, "step", action=asdict(action)))

    async def close(self, episode: str) -> None:
        """Give up an episode; nothing happens if it is not open."""
        self._waiting.discard(episode)
        if found := self._forget(episode):
            found.process.stop(found.number)

    def printed(self) -> list[str]:
        """Some of the lines that environments have printed since the last call."""
        lines, self._lines = self._lines, []
        return [*lines, *(line for process in self._processes for line in process.printed())]

    async def end(self) -> None:
        """End all processes."""
        self._sweeping.cancel()
        await asyncio.gather(*(process.end() for process in self._processes))

    async def _ask(self, name: str, do: str, **rest: object) -> dict[str, Any]:
        """Ask about an open episode; it is closed afterwards if it is done or has failed."""
        episode = self._episodes[name]
        episode.busy = True
        try:
            answer = await episode.process.ask(episode.number, do, **rest)
        except EnvironmentFailed:
            self._forget(name)
            raise
        finally:
            episode.busy, episode.asked = False, self._clock()
        if answer.get("done"):
            self._forget(name)
        return answer

    def _forget(self, name: str) -> _Episode | None:
        if episode := self._episodes.pop(name, None):
            del episode.process.episodes[episode.number]
        return episode

    async def _process_for(self, episode: str) -> EnvironmentProcess:
        self._waiting.add(episode)
        try:
            process = await self._free_process()
            if episode not in self._waiting:
                raise EnvironmentFailed(DIED, f"episode {episode} was closed before its process had loaded")
            return process
        finally:
            self._waiting.discard(episode)

    async def _free_process(self) -> EnvironmentProcess:
        """The loaded process with the fewest episodes. Raises :class:`EnvironmentFailed` if the file loads no more."""
        self._replace()
        while not (loaded := [process for process in self._processes if process.loaded]):
            done, _ = await asyncio.wait(
                [process.loading for process in self._processes], return_when=asyncio.FIRST_COMPLETED
            )
            for loading in done:
                if isinstance(error := loading.exception(), EnvironmentUnavailable):
                    raise EnvironmentFailed(DIED, str(error))
            self._replace()
        return min(loaded, key=lambda process: len(process.episodes))

    def _replace(self) -> None:
        """Start a process for each that has ended."""
        for index, process in enumerate(self._processes):
            if process.gone is not None:
                self._lines += process.printed()
                self._processes[index] = EnvironmentProcess(self._settings)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def sweep(self) -> None:
        """Replace processes that have ended, and close episodes that have been idle for too long."""
        self._replace()
        limit = self._clock() - self._settings.idle
        idle = [name for name, episode in self._episodes.items() if not episode.busy and episode.asked < limit]
        for name in idle:
            await self.close(name)
        if idle:
            self._lines.append(f"{len(idle)} episodes without an action for {self._settings.idle:g} s were closed")
