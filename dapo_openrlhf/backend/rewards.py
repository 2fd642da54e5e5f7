"""Reward workers: Ray actors that keep a judge each, so that no answer hangs a run or lies about being wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.judge.process import Judge, Judgement, judge_group
from dapo_openrlhf.judge.settings import JudgeSettings
from dapo_openrlhf.ports import GroupError
from dapo_openrlhf.types import Prompt, Score


class RewardActor:
    """Scores responses against a gold answer, one group at a time. The judging is done in a process of its judge's."""

    def __init__(self, *, settings: JudgeSettings, start_timeout: float) -> None:
        self._judge = Judge(settings, start_timeout=start_timeout)

    def ready(self) -> int:
        """The judge's process id, once the rewards are loaded. Raises ``JudgeUnavailable``."""
        self._judge.wait_ready()
        return self._judge.pid

    def score(self, texts: Sequence[str], prompt: Prompt) -> tuple[Judgement, ...]:
        """Judge a group up to its first error, which is the last entry then."""
        return tuple(judge_group(self._judge, texts, label=prompt.label, prompt=prompt.text))


class RewardPool:
    """Hands groups to free workers; kills and replaces a worker that takes too long. A ``RewardScorer``."""

    def __init__(self, *, workers: int, settings: JudgeSettings, timeout: float, start_timeout: float) -> None:
        """``timeout``: seconds for a group."""
        self._timeout = timeout
        self._settings = {"settings": settings, "start_timeout": start_timeout}
        self._actor_class = ray.remote(RewardActor)
        self._workers = [self._start() for _ in range(workers)]
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in self._workers:
            self._free.put_nowait(worker)

    def _start(self) -> Any:
        return self._actor_class.options(num_cpus=0, max_restarts=0).remote(**self._settings)

    def ready(self) -> list[ray.ObjectRef]:
        """References that resolve once the workers run."""
        return [worker.ready.remote() for worker in self._workers]

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Judge the responses behind the reference ``texts``. An error is an error, never a wrong answer."""
        worker = await self._free.get()
        # A worker cannot be interrupted: when the group is given up, it is free only after that.
        scoring = asyncio.ensure_future(self._score(worker, texts, prompt))
        try:
            return await asyncio.shield(scoring)
        except asyncio.CancelledError:
            scoring.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else will look
            raise

    async def _score(self, worker: Any, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        try:
            async with asyncio.timeout(self._timeout):
                return scores_of(await worker.score.remote(texts, prompt), prompt)
        except TimeoutError:
            worker = self._replace(worker)
            message = f"scoring prompt {prompt.id} took over {self._timeout:g} s (async.reward_timeout)"
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
