"""Reward workers: Ray actors that keep a reward process each.

No response can hang a run, and no error counts as a wrong answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.backend.messages import GroupTexts
from dapo_openrlhf.backend.run.obituary import cause_of_death
from dapo_openrlhf.pipeline.outage import Outage
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.rewards.printed import Limited
from dapo_openrlhf.rewards.process import SERVER_AWAY, RewardProcess, Scored, score_group
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.types import Prompt, Score

MOST_TIMEOUTS = 3
"""Number of timeouts after which a response itself is at fault, if the server has answered others in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A worker's scores for a group, or for the rest of it."""

    scored: tuple[Scored, ...]
    """Each response's score or error in order, up to the first error, which is then the last entry."""
    printed: tuple[str, ...] = ()
    """Some of the lines that the rewards printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTimes:
    """The pool's timeouts, in seconds."""

    group: float
    """How long a worker may take to answer."""
    start: float
    server: float
    """How long a reward server may be unavailable."""


class RewardActor:
    """Scores responses against a gold answer, one group at a time, in a process of its own."""

    def __init__(self, *, settings: RewardSettings, start_timeout: float) -> None:
        self._settings = settings
        self._process = RewardProcess(settings, start_timeout=start_timeout)

    def ready(self) -> int:
        """The process's id, once the rewards are loaded. Raises ``RewardUnavailable``."""
        self._process.wait_ready()
        return self._process.pid

    def score(self, texts: GroupTexts, prompt: Prompt, begin: int = 0) -> Judged:
        """Score a group's responses, starting with the one at index ``begin``."""
        question = Question(
            responses=texts.responses,
            queries=texts.queries or [prompt.text + response for response in texts.responses],
            prompt=prompt.text,
            label=prompt.label,
            columns=dict(prompt.columns),
        )
        at_once = self._settings.batch_size or len(texts.responses)
        scored = tuple(score_group(self._process, question, at_once=at_once, begin=begin))
        return Judged(scored=scored, printed=tuple(self._process.printed()))


class RewardPool:
    """Hands groups to free workers; kills and replaces a worker that takes too long. A ``RewardScorer``.

    Groups whose reward server is unavailable keep what was generated, are scored once the server is back, and leave
    their worker to other groups meanwhile.
    """

    def __init__(
        self, *, workers: int, settings: RewardSettings, times: RewardTimes, say: Callable[[str], None] = print
    ) -> None:
        """``say`` receives what rewards print, prefixed and limited in rate.

        It is also told when a reward server becomes unavailable, and when it is back.
        """
        self._times = times
        self._settings = {"settings": settings, "start_timeout": times.start}
        self._outage = Outage(timeout=times.server, say=say)
        self._print = Limited(say, time.monotonic)
        self._actor_class = ray.remote(RewardActor)
        self._workers = [self._start() for _ in range(workers)]
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in self._workers:
            self._free.put_nowait(worker)

    def _start(self) -> Any:
        return self._actor_class.options(num_cpus=0, max_restarts=0).remote(**self._settings)

    def ready(self) -> list[ray.ObjectRef[Any]]:
        """References that resolve once the workers are ready."""
        return [worker.ready.remote() for worker in self._workers]

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses behind the reference ``texts``. An error never counts as a wrong answer.

        Raises :class:`GroupError`, and ``ServerGone`` if a server stays unavailable.
        """
        judged: list[Scored] = []
        tries = 0
        since = self._outage.answers
        while True:
            answer = await self._ask_any(texts, prompt, len(judged))
            for line in answer.printed:
                self._print(line)
            *done, last = answer.scored
            if done or last.reason != SERVER_AWAY:
                self._outage.answered()
            if last.reason != SERVER_AWAY:
                return scores_of([*judged, *done, last], prompt)
            judged += done
            if done:
                tries, since = 0, self._outage.answers
            tries += last.timed_out
            if tries >= MOST_TIMEOUTS and self._outage.answers > since:
                message = f"scoring response {len(judged)} to prompt {prompt.id}: {last.error}, {tries} times"
                raise GroupError("reward_timeout", message)
            await self._outage.wait(str(last.error))

    async def _ask_any(self, texts: object, prompt: Prompt, begin: int) -> Judged:
        """Ask one worker after the other until one lives; all may have been on a machine that is lost.

        A worker's death is no fault of a group: what runs a user's code is a process below it, whose end it tells.
        """
        for _ in self._workers:
            with contextlib.suppress(RayActorError):
                return await self._ask(texts, prompt, begin)
        try:
            return await self._ask(texts, prompt, begin)
        except RayActorError as error:
            message = f"{len(self._workers) + 1} reward workers died one after the other: {cause_of_death(error)}"
            raise GroupError("reward_died", message) from error

    async def _ask(self, texts: object, prompt: Prompt, begin: int) -> Judged:
        worker = await self._free.get()
        # A worker cannot be interrupted: if its group is abandoned, the worker is free only once it has answered.
        asking = asyncio.ensure_future(self._ask_worker(worker, texts, prompt, begin))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieves the error
            raise

    async def _ask_worker(self, worker: Any, texts: object, prompt: Prompt, begin: int) -> Judged:
        try:
            async with asyncio.timeout(self._times.group):
                answer: Judged = await worker.score.remote(texts, prompt, begin)
                return answer
        except TimeoutError:
            worker = self._replace(worker)
            message = f"scoring prompt {prompt.id} took over {self._times.group:g} s (async.reward_timeout)"
            raise GroupError("reward_timeout", message) from None
        except RayActorError:
            worker = self._replace(worker)
            raise
        except RayTaskError as error:
            raise GroupError("reward_error", f"scoring prompt {prompt.id} failed: {error.cause!r}") from error
        finally:
            self._free.put_nowait(worker)

    def _replace(self, worker: Any) -> Any:
        ray.kill(worker)
        return self._start()


def scores_of(scored: Sequence[Scored], prompt: Prompt) -> tuple[Score, ...]:
    """The scores of a group. Raises :class:`GroupError` with the reason of the first error, if there is one."""
    scores = []
    for index, response in enumerate(scored):
        if response.score is None:
            message = f"scoring response {index} to prompt {prompt.id}: {response.error}"
            raise GroupError(response.reason, message)
        scores.append(response.score)
    return tuple(scores)
