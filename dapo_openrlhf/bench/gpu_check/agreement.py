"""Measures whether engine and trainer are the same policy before and after publications, and the cost of one."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.messages import Agreement as Comparison
from dapo_openrlhf.backend.messages import Difference, GroupTokens
from dapo_openrlhf.backend.run import workers as run_workers
from dapo_openrlhf.backend.run.actor_settings import training_sampling
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import Inputs, local_model
from dapo_openrlhf.backend.run.publishers.opening import open_publisher
from dapo_openrlhf.backend.run.remote_trainer import RemoteTrainer
from dapo_openrlhf.backend.run.stop_tokens import stop_tokens
from dapo_openrlhf.backend.run.train_settings import plan_settings
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Rollout, RolloutGroup, Span, TrainBatch

PUBLICATIONS = 10
COMPARED_TOKENS = 64
"""Longest response that is compared, in tokens."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The figures measured. Times are in seconds, each the median over all publications."""

    before: Difference
    after: Difference
    """The difference after the last publication."""
    unpublished: Difference
    """The difference between a training step and its publication, for scale: how far the policy had moved."""
    publication: float
    """The time from reading the trainer's weights until every engine uses them, while engines generate."""
    send: float
    """The part of the publication for which the trainer waits."""
    pause: float
    """The part of the publication for which an engine generates nothing."""
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Every figure by name."""
        return asdict(self)


def measure(config: Config, prompts: list[Prompt]) -> Agreement:
    """Train and publish :data:`PUBLICATIONS` times with requests in flight, and compare."""
    device = Device.of(config.device, processes=2)
    with ray_cluster(config, device):
        return asyncio.run(_measure(config, device, prompts))


async def _measure(config: Config, device: Device, prompts: list[Prompt]) -> Agreement:
    spans: list[Span] = []
    stop = stop_tokens(local_model(config.actor.model_name_or_path), chat=config.data.apply_chat_template)
    workers = await run_workers.start_workers(config, Inputs(device=device, prompts=prompts, problems=[], stop=stop))
    publisher = await open_publisher(config, workers, on_spans=spans.extend)
    trainer = RemoteTrainer(
        workers.ranks,
        replace(
            plan_settings(config),
            train_batch_size=config.rollout.n_samples_per_prompt,
            max_epochs=1,
            overlong_filtering=False,
            seed=0,
            estimator="group_norm",
            loss_agg_mode="token-mean",
        ),
        timeout=config.async_.train_timeout,
    )
    engine, long = workers.engines[0], training_sampling(config.rollout)
    short = replace(long, max_new_tokens=min(COMPARED_TOKENS, long.max_new_tokens))
    names = (f"request {number}" for number in itertools.count())
    generation = await engine.generate(next(names), prompts[0], short)
    before = await _difference(workers, generation)
    totals, sends, size = [], [], 0
    in_flight: list[asyncio.Task[Generation]] = []
    for version in range(1, PUBLICATIONS + 1):
        await trainer.train(batch_of_one(prompts[0], generation, step=version - 1))
        if version == PUBLICATIONS:
            unpublished = await _difference(workers, generation)
        in_flight += [
            asyncio.ensure_future(engine.generate(next(names), prompt, long))
            for prompt in prompts[version : version + 4]
        ]
        started = time.monotonic()
        publication = await publisher.send(PolicyVersion(version))
        sends.append(time.monotonic() - started)
        await publisher.deliver(publication)
        totals.append(time.monotonic() - started)
        size = publication.bytes
        generation = await engine.generate(next(names), prompts[0], short)
        if generation.oldest_version != version:
            raise RuntimeError(f"version {version} was live, but a new group began with {generation.oldest_version}")
    after = await _difference(workers, generation)
    await asyncio.gather(*in_flight)
    return Agreement(
        before=before,
        after=after,
        unpublished=unpublished,
        publication=statistics.median(totals),
        send=statistics.median(sends),
        pause=statistics.median(span.end - span.start for span in spans if span.kind == "load_weights"),
        bytes=size,
    )


def batch_of_one(prompt: Prompt, generation: Generation, *, step: int) -> TrainBatch:
    """A batch of one group in which every other response is right."""
    rollouts = tuple(
        Rollout(
            length=length, truncated=False, cut=False, correct=index % 2 == 0, reward=1.0 if index % 2 == 0 else -1.0
        )
        for index, length in enumerate(generation.lengths)
    )
    group = RolloutGroup(
        id=step,
        prompt=prompt,
        prompt_length=generation.prompt_length,
        rollouts=rollouts,
        oldest_version=generation.oldest_version,
        newest_version=generation.newest_version,
        engine=0,
        tokens=generation.tokens,
    )
    return TrainBatch(step=step, version=PolicyVersion(step), groups=(group,))


async def _difference(workers: run_workers.Workers, generation: Generation) -> Difference:
    reference: Any = generation.tokens  # a Ray reference, which the pipeline passes on unopened
    tokens: GroupTokens = await reference
    # Every rank, since a forward pass is a collective under ZeRO-3.
    found: list[Comparison] = await asyncio.gather(*(_compared(rank, tokens) for rank in workers.ranks))
    return found[0].engines[0]


async def _compared(rank: ray.actor.ActorHandle[Any], tokens: GroupTokens) -> Comparison:
    compared: Comparison = await rank.compare.remote([[tokens]])
    return compared
