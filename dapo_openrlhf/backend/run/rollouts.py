"""A few rollouts, looked at token by token: how an environment, a reward or a template is debugged before training."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dapo_openrlhf.backend.messages import GroupTexts, GroupTokens
from dapo_openrlhf.backend.run.actor_settings import training_sampling
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.ray_watch import while_ray_lives
from dapo_openrlhf.backend.run.workers import Workers, start_workers
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.types import Generation, Prompt, Score, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedAtSegment:
    """A part of a rollout with what is known of its tokens, which for an observation is nothing."""

    segment: Segment
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[int, ...] = ()
    """The version of the weights that sampled each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedAt:
    """One rollout."""

    prompt: Prompt
    segments: tuple[LookedAtSegment, ...]
    score: Score | None
    """None if the rollout could not be scored, for the reason in ``error``."""
    truncated: bool = False
    error: str = ""


def look_at(config: Config, inputs: Inputs, prompts: Sequence[Prompt], *, say: Callable[[str], None]) -> list[LookedAt]:
    """Sample one rollout of each prompt with the settings of training, on engines of its own."""
    with ray_cluster(config, inputs.device, say=say):
        return asyncio.run(while_ray_lives(_look_at(config, inputs, prompts, say)))


async def _look_at(
    config: Config, inputs: Inputs, prompts: Sequence[Prompt], say: Callable[[str], None]
) -> list[LookedAt]:
    workers = await start_workers(config, inputs, training=False, say=say)
    sampler = Sampler(
        engines=EnginePool(workers.engines),
        sampling=replace(training_sampling(config.rollout), n=1, kept=False),
        timeout=config.async_.generate_timeout,
    )
    async with workers.heard():
        return [*await asyncio.gather(*(_one(workers, sampler, prompt) for prompt in prompts))]


async def _one(workers: Workers, sampler: Sampler, prompt: Prompt) -> LookedAt:
    try:
        generation = await sampler.sample(f"rollout of prompt {prompt.id}", prompt, 0)
    except GroupError as error:
        return LookedAt(prompt=prompt, segments=(), score=None, error=f"{error.reason}: {error}")
    segments = await _segments(generation)
    truncated = generation.truncated[0]
    try:
        (score,) = generation.scores or await workers.rewards.score(generation.texts, prompt)
    except GroupError as error:
        return LookedAt(
            prompt=prompt, segments=segments, score=None, truncated=truncated, error=f"{error.reason}: {error}"
        )
    return LookedAt(prompt=prompt, segments=segments, score=score, truncated=truncated)


async def _segments(generation: Generation) -> tuple[LookedAtSegment, ...]:
    handles: tuple[Any, Any] = (generation.tokens, generation.texts)
    tokens: GroupTokens = await handles[0]
    texts: GroupTexts = await handles[1]
    whole = Segment(kind="action", text=texts.responses[0], tokens=generation.lengths[0])
    return tuple(_with_tokens(texts.segments[0] if texts.segments else (whole,), tokens))


def _with_tokens(segments: Sequence[Segment], tokens: GroupTokens) -> Iterator[LookedAtSegment]:
    """Give each action the tokens that are its own, in order."""
    ids, logprobs = tokens.response(0)
    versions, begin = tokens.versions.per_token(), 0
    for segment in segments:
        if segment.kind == "observation":
            yield LookedAtSegment(segment=segment)
            continue
        own = slice(begin, begin + segment.tokens)
        begin += segment.tokens
        yield LookedAtSegment(
            segment=segment,
            ids=tuple(ids[own].tolist()),
            logprobs=tuple(logprobs[own].tolist()),
            versions=tuple(versions[own].tolist()),
        )
