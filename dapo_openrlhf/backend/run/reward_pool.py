"""Reward workers: Ray actors that keep a judge each, so that no answer hangs a run or lies about being wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.backend.messages import GroupTexts
from dapo_openrlhf.pipeline.outage import Outage
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.rewards.printed import Limited
from dapo_openrlhf.rewards.process import SERVER_AWAY, Judge, Judgement, judge_group
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import JudgeSettings
from dapo_openrlhf.types import Prompt, Score

MOST_TIMEOUTS = 3
"""Of one response, after which it is the response's fault, if the server has answered others in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A worker's answer about a group, or about the rest of it."""

    judgements: tuple[Judgement, ...]
    """In order, up to the first error, which is the last entry then."""
    printed: tuple[str, ...] = ()
    """What the rewards printed, some lines of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTimes:
    """How long the pool waits, in seconds."""

    group: float
    """For a worker's answer."""
    start: float
    server: float
    """For a reward server that went away."""


class RewardActor:
    """Scores responses against a gold answer, one group at a time. The judging is done in a process of its judge's."""

    def __init__(self, *, settings: JudgeSettings, start_timeout: float) -> None:
        self._settings = settings
        self._judge = Judge(settings, start_timeout=start_timeout)

    def ready(self) -> int:
        """The judge's process id, once the rewards are loaded. Raises ``JudgeUnavailable``."""
        self._judge.wait_ready()
        return self._judge.pid

    def score(self, texts: GroupTexts, prompt: Prompt, begin: int = 0) -> Judged:
        """Judge a group's responses from ``begin`` on."""
        question = Question(
            responses=texts.responses,
            queries=texts.queries or [prompt.text + response for response in texts.responses],
            prompt=prompt.text,
            label=prompt.label,
            columns=dict(prompt.columns),
        )
        at_once = self._settings.batch_size or len(texts.responses)
        judgements = tuple(judge_group(self._judge, question, at_once=at_once, begin=begin))
        return Judged(judgements=judgements, printed=tuple(self._judge.printed()))


class RewardPool:
    """Hands groups to free workers; kills and replaces a worker that takes too long. A ``RewardScorer``.

    What a reward server was away for is judged once it is back: groups wait, with all that was generated, and let
    others have their worker meanwhile.
    """

    def __init__(
        self, *, workers: int, settings: JudgeSettings, times: RewardTimes, say: Callable[[str], None] = print
    ) -> None:
        """``say`` is told what rewards print, with a prefix and not too often, and when a server goes and comes."""
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
        """References that resolve once the workers run."""
        return [worker.ready.remote() for worker in self._workers]

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Judge the responses behind the reference ``texts``. An error is an error, never a wrong answer.

        Raises :class:`GroupError`, and ``ServerGone`` when a server stays away.
        """
        judged: list[Judgement] = []
        tries = 0
        since = self._outage.answers
        while True:
            answer = await self._ask(texts, prompt, len(judged))
            for line in answer.printed:
                self._print(line)
            *done, last = answer.judgements
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

    async def _ask(self, texts: object, prompt: Prompt, begin: int) -> Judged:
        worker = await self._free.get()
        # A worker cannot be interrupted: when the group is given up, it is free only after that.
        asking = asyncio.ensure_future(self._ask_worker(worker, texts, prompt, begin))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else will look
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
        except RayActorError as error:
            worker = self._replace(worker)
            raise GroupError("reward_died", f"a reward worker died: {error}") from error
        except RayTaskError as error:
            raise GroupError("reward_error", f"scoring prompt {prompt.id} failed: {error.cause!r}") from error
        finally:
            self._free.put_nowait(worker)

    def _replace(self, worker: Any) -> Any:
        ray.kill(worker)
        return self._start()


def scores_of(judgements: Sequence[Judgement], prompt: Prompt) -> tuple[Score, ...]:
    """The scores of a group; :class:`GroupError` with the first error's reason if there is one."""
    scores = []
    for index, judgement in enumerate(judgements):
        if judgement.score is None:
            message = f"scoring response {index} to prompt {prompt.id}: {judgement.error}"
            raise GroupError(judgement.reason, message)
        scores.append(judgement.score)
    return tuple(scores)
