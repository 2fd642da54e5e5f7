"""The rollout loop (layer 2: asyncio).

Consumes prompts and slots, produces scored groups for the queue. Waits for a free slot only, and is unblocked by a
drop, a failure or live weights. One task per group: generate, score, offer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dapo_openrlhf.event_log import EventLog
from dapo_openrlhf.events import GroupDispatched, GroupFailed, GroupGenerated, GroupJudged
from dapo_openrlhf.overlong import soft_overlong_punishment
from dapo_openrlhf.ports import GenerationEngine, GroupError, RewardScorer, Sampling
from dapo_openrlhf.prompts import PromptStream
from dapo_openrlhf.rollout_queue import RolloutQueue
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Rollout, RolloutGroup, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthShaping:
    """Soft overlong punishment (eq. 13) as it is added to rewards; ``buffer_length`` 0 switches it off."""

    max_length: int
    buffer_length: int
    factor: float

    def shape(self, score: Score, length: int, *, truncated: bool) -> Rollout:
        """One response with its final reward."""
        punishment = soft_overlong_punishment(
            length, max_length=self.max_length, buffer_length=self.buffer_length, factor=self.factor
        )
        return Rollout(length=length, truncated=truncated, correct=score.correct, reward=score.reward + punishment)


class EnginePool:
    """The engines with the number of groups each is working on."""

    def __init__(self, engines: Sequence[GenerationEngine]) -> None:
        self.engines = tuple(engines)
        self._load = [0] * len(self.engines)

    def least_loaded(self) -> int:
        """Index of the engine with the fewest groups, the first of several."""
        return min(range(len(self.engines)), key=self._load.__getitem__)

    async def generate(self, engine: int, prompt: Prompt, sampling: Sampling, timeout: float) -> Generation:
        """Generate on one engine within ``timeout`` seconds. Raises :class:`GroupError`."""
        self._load[engine] += 1
        try:
            async with asyncio.timeout(timeout):
                return await self.engines[engine].generate(prompt, sampling)
        except TimeoutError:
            message = f"engine {engine} did not finish prompt {prompt.id} within {timeout:g} s"
            raise GroupError("generate_timeout", message) from None
        finally:
            self._load[engine] -= 1


class RolloutLoop:
    """Keeps every slot busy."""

    def __init__(
        self,
        *,
        prompts: PromptStream,
        engines: EnginePool,
        scorer: RewardScorer,
        queue: RolloutQueue,
        sampling: Sampling,
        shaping: LengthShaping,
        generate_timeout: float,
        log: EventLog,
    ) -> None:
        self._prompts = prompts
        self._engines = engines
        self._scorer = scorer
        self._queue = queue
        self._sampling = sampling
        self._shaping = shaping
        self._generate_timeout = generate_timeout
        self._log = log

    async def run(self) -> None:
        """Dispatch a group whenever a slot is free, until cancelled."""
        async with asyncio.TaskGroup() as groups:
            while True:
                await self._queue.slot()
                version = self._queue.live_version
                group_id, deadline = self._queue.dispatch()
                groups.create_task(self._make_group(group_id, version, deadline))

    async def _make_group(self, group_id: int, version: PolicyVersion, deadline: int) -> None:
        prompt = self._prompts.next()
        engine = self._engines.least_loaded()
        self._log.emit(
            GroupDispatched(group=group_id, prompt=prompt.id, version=version, deadline=deadline, engine=engine)
        )
        try:
            generation = await self._generate(group_id, engine, prompt)
            await self._judge(group_id, prompt, generation)
        except GroupError as error:
            self._log.emit(GroupFailed(group=group_id, reason=error.reason, message=str(error)))
            self._queue.fail(group_id, error.reason, str(error))
            if not error.permanent:
                self._prompts.put_back(prompt)

    async def _generate(self, group_id: int, engine: int, prompt: Prompt) -> Generation:
        started = self._log.now()
        generation = await self._engines.generate(engine, prompt, self._sampling, self._generate_timeout)
        self._log.emit(
            GroupGenerated(
                group=group_id,
                engine=engine,
                seconds=self._log.now() - started,
                response_tokens=sum(generation.lengths),
                oldest_version=generation.oldest_version,
                newest_version=generation.newest_version,
            )
        )
        return generation

    async def _judge(self, group_id: int, prompt: Prompt, generation: Generation) -> None:
        started = self._log.now()
        scores = await self._scorer.score(generation.texts, prompt)
        group = RolloutGroup(
            id=group_id,
            prompt=prompt,
            prompt_length=generation.prompt_length,
            rollouts=tuple(
                self._shaping.shape(score, length, truncated=truncated)
                for score, length, truncated in zip(scores, generation.lengths, generation.truncated, strict=True)
            ),
            oldest_version=generation.oldest_version,
            newest_version=generation.newest_version,
            engine=generation.engine,
            tokens=generation.tokens,
        )
        verdict = self._queue.offer(group)
        self._log.emit(
            GroupJudged(
                group=group_id,
                keep=verdict.keep,
                reason=verdict.reason,
                accuracy=group.accuracy,
                reward=group.mean_reward,
                response_tokens=group.response_tokens,
                seconds=self._log.now() - started,
            )
        )
