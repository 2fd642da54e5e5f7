"""The rollout loop (asyncio).

It consumes prompts and slots and produces scored groups for the queue. It waits only for a free slot, and is unblocked
by a drop, a failure or live weights. Each group is one task: generate, score, offer.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from dapo_openrlhf.algorithm.overlong import soft_overlong_punishment
from dapo_openrlhf.pipeline.engine_pool import Sampler
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import (
    GroupCut,
    GroupDispatched,
    GroupFailed,
    GroupGenerated,
    GroupJudged,
    GroupSurplus,
    PromptDropped,
)
from dapo_openrlhf.pipeline.ports import GroupError, GroupScorer, PromptFault
from dapo_openrlhf.pipeline.prompts import PromptState, PromptStream
from dapo_openrlhf.pipeline.rollout_queue import RolloutQueue
from dapo_openrlhf.types import Generation, Prompt, Rollout, RolloutGroup, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthShaping:
    """Adds the soft overlong punishment (eq. 13) to rewards; ``buffer_length`` 0 switches it off."""

    max_length: int
    buffer_length: int
    factor: float
    truncated: float | None = None
    """The factor of a truncated response's reward if it is not negative, otherwise that reward; None leaves it."""

    def shape(self, score: Score, length: int, *, truncated: bool, cut: bool, observed: int = 0) -> Rollout:
        """Return one response with its final reward."""
        punishment = soft_overlong_punishment(
            length, max_length=self.max_length, buffer_length=self.buffer_length, factor=self.factor
        )
        reward = score.reward + punishment
        if truncated and self.truncated is not None:
            reward = self.truncated if self.truncated < 0 else self.truncated * reward
        return Rollout(
            length=length,
            truncated=truncated,
            cut=cut,
            correct=score.correct,
            reward=reward,
            score=score.score,
            observed=observed,
        )


class RolloutLoop:
    """Keeps every slot busy."""

    def __init__(
        self,
        *,
        prompts: PromptStream,
        sampler: Sampler,
        scorer: GroupScorer,
        queue: RolloutQueue,
        shaping: LengthShaping,
        cut_late: bool,
        log: EventLog,
    ) -> None:
        """``cut_late``: groups that hold up a batch at their deadline are cut instead of waited for."""
        self._prompts = prompts
        self._sampler = sampler
        self._scorer = scorer
        self._queue = queue
        self._shaping = shaping
        self._cut_late = cut_late
        self._log = log
        self._making: dict[int, tuple[Prompt, asyncio.Task[None]]] = {}

    @property
    def queue(self) -> RolloutQueue:
        """Where finished groups wait to be trained."""
        return self._queue

    def prompt_state(self) -> PromptState:
        """How far the run has come with its prompts; groups in flight or in the queue count as not begun."""
        in_flight = self._queue.in_flight_ids  # a group's task ends a moment after the group
        making = [prompt for group_id, (prompt, _) in self._making.items() if group_id in in_flight]
        return self._prompts.state([*self._queue.ready_prompts, *making])

    async def run(self) -> None:
        """Dispatch a group whenever a slot is free, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._cut_late:
                tasks.create_task(self._cut())
            while True:
                await self._queue.slot()
                version = self._queue.live_version
                group_id, deadline = self._queue.dispatch()
                prompt, reason = self._prompts.next()
                self._log.emit(
                    GroupDispatched(group=group_id, prompt=prompt.id, version=version, deadline=deadline, reason=reason)
                )
                task = tasks.create_task(self._make_group(group_id, prompt))
                self._making[group_id] = prompt, task
                task.add_done_callback(functools.partial(self._made, group_id))

    def _made(self, group_id: int, task: asyncio.Task[None]) -> None:
        del self._making[group_id]

    async def _make_group(self, group_id: int, prompt: Prompt) -> None:
        try:
            generation = await self._generate(group_id, prompt)
            await self._score(group_id, prompt, generation)
        except GroupError as error:
            self._log.emit(GroupFailed(group=group_id, reason=error.reason, message=str(error)))
            self._queue.fail(group_id, error.reason, str(error))
            if isinstance(error, PromptFault):
                self._prompts.drop(prompt, error.reason)
                self._log.emit(PromptDropped(prompt=prompt.id, reason=error.reason, message=str(error)))
            elif not error.permanent:
                self._prompts.put_back(prompt)

    async def _generate(self, group_id: int, prompt: Prompt) -> Generation:
        started = self._log.now()
        generation = await self._sampler.sample(_request(group_id), prompt, group_id)
        self._log.emit(
            GroupGenerated(
                group=group_id,
                engine=generation.engine,
                seconds=self._log.now() - started,
                response_tokens=sum(generation.lengths),
                responses=len(generation.lengths),
                truncated=sum(generation.truncated) - sum(generation.cut),
                oldest_version=generation.oldest_version,
                newest_version=generation.newest_version,
                prompt_tokens=generation.prompt_length,
                lengths=generation.lengths,
            )
        )
        return generation

    async def _score(self, group_id: int, prompt: Prompt, generation: Generation) -> None:
        started = self._log.now()
        scores = await self._scorer.score(generation, prompt)
        group = self._group(group_id, prompt, generation, scores)
        self._learn(group)
        decision = self._queue.offer(group)
        self._log.emit(
            GroupJudged(
                group=group_id,
                keep=decision.keep,
                reason=decision.reason,
                accuracy=group.accuracy,
                reward=group.mean_reward,
                response_tokens=group.response_tokens,
                seconds=self._log.now() - started,
                logs=_means([score.logs for score in scores]),
            )
        )
        self._drop_surplus()

    def _learn(self, group: RolloutGroup) -> None:
        """Tell the prompts how many responses were right, of those that were not cut."""
        whole = tuple(rollout for rollout in group.rollouts if not rollout.cut)
        if whole:
            rate = self._queue.pass_rate(replace(group, rollouts=whole))
            self._prompts.learn(group.prompt, rate, len(whole))

    def _group(self, group_id: int, prompt: Prompt, generation: Generation, scores: tuple[Score, ...]) -> RolloutGroup:
        observed = generation.observed or (0,) * len(scores)
        responses = zip(scores, generation.lengths, generation.truncated, generation.cut, observed, strict=True)
        return RolloutGroup(
            id=group_id,
            prompt=prompt,
            prompt_length=generation.prompt_length,
            rollouts=tuple(
                self._shaping.shape(score, length, truncated=truncated, cut=cut, observed=observed)
                for score, length, truncated, cut, observed in responses
            ),
            oldest_version=generation.oldest_version,
            newest_version=generation.newest_version,
            version_tokens=generation.version_tokens,
            engine=generation.engine,
            tokens=generation.tokens,
        )

    def _drop_surplus(self) -> None:
        """Drop groups of over-sampling that are not needed: those in flight are stopped, and no prompt is lost."""
        for group_id, group in self._queue.drop_surplus().items():
            if group is None:
                prompt, task = self._making[group_id]
                task.cancel()
            else:
                prompt = group.prompt
            self._prompts.put_back(prompt)
            self._log.emit(GroupSurplus(group=group_id, response_tokens=group.response_tokens if group else 0))

    async def _cut(self) -> None:
        """Cut groups that hold up a batch, each of them once."""
        cut: set[int] = set()
        while True:
            for group_id in await self._queue.late() - cut:
                cut.add(group_id)
                self._log.emit(GroupCut(group=group_id))
                self._sampler.engines.cut(_request(group_id))


def _means(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the values under each name, over the entries that have it."""
    names = dict.fromkeys(name for log in logs for name in log)
    return {name: fmean(log[name] for log in logs if name in log) for name in names}


def _request(group_id: int) -> str:
    return f"group {group_id}"
