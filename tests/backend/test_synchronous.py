"""At a staleness of 0 the pipeline is a plain synchronous loop, to the last bit, whatever takes how long.

Pipeline, queue, filter, trainer rank and loss are the real ones; the language model is a table, and the engine computes
each sequence alone, so that no sequence depends on its company.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from plain_model import Bigram, PlainModel
from torch import Tensor

from dapo_openrlhf.backend.messages import GroupTokens, one_version
from dapo_openrlhf.backend.trainer import attention
from dapo_openrlhf.backend.trainer.packing import Packing
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.policy import Policy
from dapo_openrlhf.backend.trainer.rank import Rank
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, GuardSettings, LossSettings, TrainSettings
from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch
from dapo_openrlhf.pipeline.conductor import Pipeline, Training
from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter, OverSampling
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.ports import Health, Publication, Sampling
from dapo_openrlhf.pipeline.prompts import PromptStream
from dapo_openrlhf.pipeline.rollout import LengthShaping, RolloutLoop
from dapo_openrlhf.pipeline.rollout_queue import RolloutQueue
from dapo_openrlhf.pipeline.saving import Saver
from dapo_openrlhf.pipeline.schedule import Schedule
from dapo_openrlhf.pipeline.staleness import StalenessPolicy
from dapo_openrlhf.plan.actors import NoCheckpoints
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Rollout, RolloutGroup, Score, TrainBatch

VOCABULARY, END = 9, 0
GROUPS, RESPONSES, STEPS, LONGEST = 4, 5, 6, 12
SEED = 3
SAMPLING = Sampling(n=RESPONSES, max_new_tokens=LONGEST, temperature=1.0, top_p=1.0)
LOSS = LossSettings(
    eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
    old_logprobs="recompute", is_correction_level="token", is_correction_mode="clip",
    is_correction_threshold=(0.0, 2.0), temperature=1.0,
)  # fmt: skip
ADVANTAGES = AdvantageSettings(
    critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0, kl_estimator="k3"
)
PLAN = PlanSettings(
    train_batch_size=10, max_epochs=1, max_tokens=30, overlong_filtering=False, seed=SEED, estimator="group_norm",
    loss_agg_mode="token-mean", longest_response=LONGEST,
)  # fmt: skip


def some_prompts() -> list[Prompt]:
    return [Prompt(id=index, text="", token_ids=(1 + index % (VOCABULARY - 1),)) for index in range(17)]


def sampled(table: Tensor, prompt: Prompt, sampling: Sampling, version: int) -> tuple[GroupTokens, tuple[bool, ...]]:
    """Each response from a generator of its own; and whether it was truncated."""
    assert sampling.seed is not None
    ids: list[list[int]] = []
    logprobs: list[float] = []
    for index in range(sampling.n):
        dice = torch.Generator().manual_seed(sampling.seed + index)
        response: list[int] = []
        while len(response) < sampling.max_new_tokens and response[-1:] != [END]:
            row = table[response[-1] if response else prompt.token_ids[-1]].log_softmax(-1)
            token = int(torch.multinomial(row.exp(), 1, generator=dice))
            response.append(token)
            logprobs.append(float(row[token]))
        ids.append(response)
    lengths = [len(response) for response in ids]
    tokens = GroupTokens(
        prompt_ids=np.asarray(prompt.token_ids, np.int32),
        response_ids=np.concatenate(ids).astype(np.int32),
        rollout_logprobs=np.asarray(logprobs, np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        versions=one_version(version, sum(lengths)),
    )
    return tokens, tuple(response[-1] != END for response in ids)


def scores(tokens: GroupTokens) -> tuple[Score, ...]:
    """A response is right if the sum of its tokens is divisible by three."""
    right = [int(tokens.response(index)[0].sum()) % 3 == 0 for index in range(RESPONSES)]
    return tuple(Score(correct=each, reward=1.0 if each else -1.0) for each in right)


class Trainer:
    """A ``PolicyTrainer`` around one real rank. It keeps what it trained."""

    def __init__(self) -> None:
        self.model = PlainModel(Bigram(VOCABULARY, seed=SEED), lr=0.05)
        self.rank = Rank(
            Policy(self.model, Packing(attention.NAME), temperature=1.0, reference=None),
            None,
            TrainSettings(
                loss=LOSS, advantages=ADVANTAGES, guard=GuardSettings(max_bad_updates=1, folder="unused")
            ),
            peers=Peers(),
            spans=Spans("trainer 0"),
        )  # fmt: skip
        self.prompts: list[list[int]] = []

    def weights(self) -> Tensor:
        return self.model.inner.table.detach().clone()

    def step(self, batch: TrainBatch) -> Mapping[str, float]:
        (plan,) = plan_batch(batch, PLAN, ranks=1)
        tokens = {position: group.tokens for position, group in enumerate(batch.groups)}
        report = self.rank.train(plan, tokens)  # type: ignore[arg-type]
        self.prompts.append([group.prompt.id for group in batch.groups])
        return {"loss": report.sums["loss"], "rollout_kl": report.sums["rollout_kl"]}

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        await asyncio.sleep(1.0)
        self.step(batch)
        return {}

    async def supervise(self) -> None:
        await asyncio.Event().wait()

    async def save(self, path: str) -> None: ...

    async def snapshot(self, path: str) -> None: ...

    async def write_snapshot(self) -> None: ...


# ---------------------------------------------------------------- the plain loop


@dataclass(frozen=True)
class Result:
    weights: Tensor
    prompts: list[list[int]]


def synchronous_loop(*, filtered: bool) -> Result:
    """Generate all, score, filter, train, take the new weights."""
    trainer = Trainer()
    stream = PromptStream(some_prompts(), seed=SEED)
    group_filter = GroupFilter(enabled=filtered)
    weights, dispatched = trainer.weights(), 0
    for step in range(STEPS):
        kept: list[RolloutGroup] = []
        while len(kept) < GROUPS:
            prompt = stream.next().prompt
            seeds = Seeds()
            asyncio.run(Sampler(engines=seeds, sampling=SAMPLING, timeout=1, seed=SEED).sample("", prompt, dispatched))  # type: ignore[arg-type]
            tokens, truncated = sampled(weights, prompt, seeds.sampling, step)
            group = RolloutGroup(
                id=dispatched,
                prompt=prompt,
                prompt_length=1,
                rollouts=tuple(
                    Rollout(length=len(tokens.response(i)[0]), truncated=truncated[i], cut=False, correct=s.correct, reward=s.reward)
                    for i, s in enumerate(scores(tokens))
                ),
                oldest_version=PolicyVersion(step),
                newest_version=PolicyVersion(step),
                engine=0,
                tokens=tokens,
            )  # fmt: skip
            dispatched += 1
            if group_filter.decide(group).keep:
                kept.append(group)
        trainer.step(TrainBatch(step=step, version=PolicyVersion(step), groups=tuple(kept)))
        weights = trainer.weights()
    return Result(weights, trainer.prompts)


class Seeds:
    """Hears with which sampling a group would be generated."""

    sampling: Sampling

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling, timeout: float) -> None:
        self.sampling = sampling


# ---------------------------------------------------------------- the pipeline


class Engine:
    """A ``GenerationEngine`` that takes a random time for each group."""

    life = 0

    def __init__(self, weights: Tensor, dice: random.Random) -> None:
        self.weights = weights
        self.version = 0
        self._dice = dice

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        tokens, truncated = sampled(self.weights, prompt, sampling, self.version)
        await asyncio.sleep(self._dice.paretovariate(0.8))
        lengths = tuple(int(n) for n in np.diff(tokens.offsets))
        version = PolicyVersion(self.version)
        return Generation(
            prompt_length=1, lengths=lengths, truncated=truncated, cut=(False,) * RESPONSES, oldest_version=version,
            newest_version=version, version_tokens=(sum(lengths),), engine=0, tokens=tokens, texts=tokens,
        )  # fmt: skip

    async def health(self) -> Health:
        raise NotImplementedError

    def stop(self, cause: str, *, life: int) -> bool:
        raise NotImplementedError

    def cut(self, request: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Scorer:
    dice: random.Random

    async def score(self, generation: Generation, prompt: Prompt) -> tuple[Score, ...]:
        texts = generation.texts
        assert isinstance(texts, GroupTokens)
        await asyncio.sleep(self.dice.random())
        return scores(texts)


@dataclass(frozen=True)
class Publisher:
    trainer: Trainer
    engines: list[Engine]

    async def send(self, version: PolicyVersion) -> Publication:
        return Publication(version=version, bytes=0, checksum=0)

    async def deliver(self, publication: Publication) -> None:
        weights = self.trainer.weights()
        for engine in self.engines:
            await asyncio.sleep(0.5)
            engine.weights, engine.version = weights, publication.version


async def asynchronous(*, filtered: bool, timing: int, engines: int, max_staleness: int) -> Result:
    dice = random.Random(timing)
    trainer = Trainer()
    workers = [Engine(trainer.weights(), dice) for _ in range(engines)]
    pool, log = EnginePool(workers), EventLog(None, clock=asyncio.get_running_loop().time)
    rollouts = RolloutLoop(
        prompts=PromptStream(some_prompts(), seed=SEED),
        sampler=Sampler(engines=pool, sampling=SAMPLING, timeout=1e9, seed=SEED),
        scorer=Scorer(dice),
        queue=RolloutQueue(
            policy=StalenessPolicy(batch_size=GROUPS, max_staleness=max_staleness),
            group_filter=GroupFilter(enabled=filtered),
            over_sampling=OverSampling(factor=1.0, window=GROUPS),
            max_filtered_batches=1000,
            stall_timeout=1e9,
        ),
        shaping=LengthShaping(max_length=LONGEST, buffer_length=0, factor=0.0),
        cut_late=False,
        log=log,
    )
    pipeline = Pipeline(
        engines=pool,
        rollouts=rollouts,
        training=Training(
            trainer=trainer,
            publisher=Publisher(trainer, workers),
            agreement=Agreement(limit=math.inf, data_type="fp32"),
        ),
        evaluator=None,
        saver=Saver(trainer=trainer, rollouts=rollouts, checkpoints=NoCheckpoints(), model_path="", log=log),
        schedule=Schedule(max_steps=STEPS),
        log=log,
    )
    await pipeline.run()
    return Result(trainer.weights(), trainer.prompts)


@pytest.mark.parametrize("filtered", [False, True])
def test_a_run_at_staleness_0_is_a_synchronous_loop_bit_for_bit(filtered: bool) -> None:
    plain = synchronous_loop(filtered=filtered)
    assert not torch.equal(plain.weights, Trainer().weights())
    for timing in range(4):
        run = run_virtual(asynchronous(filtered=filtered, timing=timing, engines=1 + timing % 3, max_staleness=0))
        assert run.prompts == plain.prompts
        assert torch.equal(run.weights, plain.weights)


def test_a_stale_run_is_another_one() -> None:
    """So the test above can fail."""
    plain = synchronous_loop(filtered=True)
    stale = run_virtual(asynchronous(filtered=True, timing=0, engines=2, max_staleness=1))
    assert not torch.equal(stale.weights, plain.weights)


def test_each_response_has_a_seed_of_its_own() -> None:
    """Of every prompt at every place; and another ``train.seed`` gives others."""

    def seeds(seed: int) -> set[int]:
        found = set()
        for prompt in some_prompts():
            for place in range(5):
                heard = Seeds()
                asyncio.run(Sampler(engines=heard, sampling=SAMPLING, timeout=1, seed=seed).sample("", prompt, place))  # type: ignore[arg-type]
                assert heard.sampling.seed is not None and replace(heard.sampling, seed=None) == SAMPLING
                found |= {heard.sampling.seed + index for index in range(RESPONSES)}
        return found

    assert len(seeds(0)) == 17 * 5 * RESPONSES
    assert not seeds(0) & seeds(1)
    assert all(0 <= seed < 2**63 for seed in seeds(0))
