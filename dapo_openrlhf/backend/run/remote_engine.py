"""The controller's view of an engine actor (a rollout worker), and of the texts that it leaves in the object store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from dapo_openrlhf.backend.messages import BadPrompt, GenerationReport, GroupTexts
from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerFailed, all_within
from dapo_openrlhf.backend.run.obituary import cause_of_death
from dapo_openrlhf.environments.messages import EnvironmentFailed
from dapo_openrlhf.pipeline.ports import (
    CUT_TOO_EARLY,
    ENGINE_DIED,
    EngineGone,
    EnvironmentFault,
    GroupError,
    Health,
    NotRevived,
    PromptFault,
    Sampling,
)
from dapo_openrlhf.types import Generation, Prompt, Transcript


class RemoteEngine:
    """One engine actor. A ``GenerationEngine``."""

    def __init__(self, start: Callable[[int], Any], *, index: int, plays: bool = False) -> None:
        """``start`` starts the actor of the engine with that index, with the weights that the run began with.

        ``plays``: an environment answers each rollout.
        """
        self._start = start
        self._plays = plays
        self._index = index
        self._life = 0
        self._causes: dict[int, str] = {}  # of lives that this process has ended
        self.actor = start(index)

    @property
    def life(self) -> int:
        """How often the engine was started anew."""
        return self._life

    async def health(self) -> Health:
        """How the actor does."""
        life = self._life
        try:
            health: Health = await self.actor.health.remote()
        except RayActorError as error:
            raise EngineGone(self._death(life, error)) from error
        return health

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """Sample a group; its tokens and texts stay in the object store."""
        life, actor = self._life, self.actor
        if self._plays:
            made = actor.play.options(num_returns=3).remote(request, prompt, sampling)
        else:
            made = actor.generate.options(num_returns=3).remote(request, prompt.token_ids, sampling)
        report_ref, tokens, texts = made
        try:
            report: GenerationReport | None = await report_ref
        except asyncio.CancelledError:
            actor.cut.remote(request)
            raise
        except RayActorError as error:
            raise GroupError(ENGINE_DIED, self._death(life, error)) from error
        except RayTaskError as error:
            _take_note(tokens, texts)
            if isinstance(error.cause, BadPrompt):
                raise PromptFault(error.cause.reason, f"{prompt.name}: {error.cause}") from error
            if isinstance(failed := error.cause, EnvironmentFailed):
                words = f"{prompt.name}: {failed}"
                raise EnvironmentFault(failed.reason, words, blameless=failed.blameless) from error
            raise GroupError("engine_error", f"engine {self._index}: {error.cause!r}") from error
        if report is None:
            raise GroupError(CUT_TOO_EARLY, f"prompt {prompt.id} was cut before each of its responses had a token")
        return report.generation(engine=self._index, tokens=tokens, texts=texts)

    def cut(self, request: str) -> None:
        """End a group with the tokens generated so far."""
        self.actor.cut.remote(request)

    def stop(self, cause: str, *, life: int) -> bool:
        """Kill the actor, which may hang; its groups fail with ``cause``. Returns False if that life is over."""
        if life != self._life:
            return False
        self._causes[life] = cause
        ray.kill(self.actor)
        return True

    def replace(self) -> None:
        """Start a new actor in place of this one, which may be dead, hanging or failing."""
        ray.kill(self.actor)
        self._life += 1
        self.actor = self._start(self._index)

    def _death(self, life: int, error: RayActorError) -> str:
        return f"engine {self._index} died: {self._causes.get(life) or cause_of_death(error)}"


class EngineRestarts:
    """An ``EngineReviver`` for engines whose weights never change."""

    def __init__(self, engines: Sequence[RemoteEngine], *, start_timeout: float) -> None:
        """``start_timeout``: seconds for a new engine's start."""
        self._engines = tuple(engines)
        self._start_timeout = start_timeout

    async def revive(self, engine: int) -> None:
        """Replace an engine; returns once the new one is ready. Raises ``NotRevived``."""
        self._engines[engine].replace()
        await start_again(self._engines[engine], f"engine {engine}", self._start_timeout)


async def start_again(engine: RemoteEngine, name: str, timeout: float) -> None:
    """Wait until an engine that was replaced is ready. Raises ``NotRevived``."""
    ready = engine.actor.ready.remote()
    try:
        await all_within([ready], [name], timeout, f"starting {name} again", "async.start_timeout")
    except (WorkerFailed, PipelineTimeout) as error:
        raise NotRevived(str(error)) from error


class ObjectStoreTexts:
    """Fetches responses from the object store. A ``ResponseTexts``."""

    def __init__(self, *, timeout: float) -> None:
        """``timeout``: seconds for a group's texts."""
        self._timeout = timeout

    async def fetch(self, texts: Any) -> Sequence[Transcript]:
        """Wait for a group's texts and copy them here."""
        try:
            async with asyncio.timeout(self._timeout):
                fetched: GroupTexts = await texts
        except TimeoutError:
            raise GroupError("texts_lost", f"a group's texts did not arrive within {self._timeout:g} s") from None
        except RayError as error:
            raise GroupError("texts_lost", f"a group's texts are lost: {error}") from error
        segments = fetched.segments or ((),) * len(fetched.responses)
        return [Transcript(text=text, segments=s) for text, s in zip(fetched.responses, segments, strict=True)]


def _take_note(*results: ray.ObjectRef[Any]) -> None:
    """Retrieve results that nobody uses: Ray prints a traceback for an error that was not retrieved."""
    for result in results:
        result.future()
