"""How one rollout step's batch is cut into updates, ranks and micro-batches (pure Python: it sees lengths only).

Legend: P groups of G responses; U updates of ``train_batch_size`` responses each; R trainer ranks; every rank does
the same number of micro-batches in an update, because DeepSpeed's collectives run once per micro-batch.

What each token weighs in the loss of its update is decided here, over the whole mini-batch, so the gradient does not
depend on how the mini-batch is cut.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dapo_openrlhf.algorithm.advantage import batch_credits
from dapo_openrlhf.algorithm.aggregation import token_weights
from dapo_openrlhf.algorithm.choices import EstimatorName, LossAggMode
from dapo_openrlhf.types import RolloutGroup, TrainBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response as the trainer sees it."""

    group: int
    """Index of the group in the batch, 0 .. P-1."""
    index: int
    """Index of the response in the group, 0 .. G-1."""
    prompt_length: int
    length: int
    """Number of response tokens."""
    advantage: float
    """The response's group-relative advantage; with a critic, or where the batch is whitened, the credit from which
    trainer ranks compute the advantage of each token."""
    trained: bool
    """Whether the response is trained and not masked, as by overlong filtering; only then its tokens count in
    denominators."""
    fresh: bool = False
    """Whether all of the response was sampled with the weights that the step begins with (policy age 0)."""
    weight: float = 0.0
    """The weight of each of its trained tokens in the policy loss of its update."""
    observed: int = 0
    """Number of tokens that an environment put into the context; they are read, and never trained."""

    @property
    def tokens(self) -> int:
        """Length of the context: the tokens of prompt, response and environment together."""
        return self.prompt_length + self.length + self.observed


MicroBatch = tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One gradient update on one rank."""

    micro_batches: tuple[MicroBatch, ...]
    total_tokens: int
    """Number of trained response tokens in the whole mini-batch, over all ranks."""
    read_tokens: int
    """Number of tokens of all contexts in the whole mini-batch, over all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """Everything one rank does in a rollout step."""

    updates: tuple[Update, ...]
    step: int = 0
    """Rollout step, from 0."""

    @property
    def groups(self) -> tuple[int, ...]:
        """Indices of the groups whose tokens this rank needs, ascending."""
        return tuple(sorted({s.group for u in self.updates for micro in u.micro_batches for s in micro}))


def samples_of(
    groups: Sequence[RolloutGroup],
    *,
    overlong_filtering: bool,
    estimator: EstimatorName,
    version: int,
    clip_range: tuple[float, float] | None = None,
) -> list[list[Sample]]:
    """The G responses of each group with their advantages. ``version``: the trainer's, which makes a response fresh."""
    credits = batch_credits(
        [[rollout.reward for rollout in group.rollouts] for group in groups], estimator=estimator, clip_range=clip_range
    )
    return [
        [
            Sample(
                group=position,
                index=index,
                prompt_length=group.prompt_length,
                length=rollout.length,
                advantage=advantage,
                trained=not (rollout.cut or (overlong_filtering and rollout.truncated)),
                fresh=group.oldest_version == version,
                observed=rollout.observed,
            )
            for index, (rollout, advantage) in enumerate(zip(group.rollouts, of_group, strict=True))
        ]
        for position, (group, of_group) in enumerate(zip(groups, credits, strict=True))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How batches are cut; names and values as in the configuration."""

    train_batch_size: int
    """Number of responses in an update."""
    max_epochs: int
    max_tokens: int
    """Most prompt and response tokens of a micro-batch; a single sequence that is longer gets one of its own."""
    overlong_filtering: bool
    seed: int
    estimator: EstimatorName
    loss_agg_mode: LossAggMode
    longest_response: int
    """Longest response allowed, in tokens; the constant of the aggregation that has one."""
    clip_range: tuple[float, float] | None = None
    """Bounds of a response's credit; None for none."""


def plan_batch(batch: TrainBatch, settings: PlanSettings, *, ranks: int) -> tuple[RankPlan, ...]:
    """Cut a batch into U x max_epochs updates for each of ``ranks`` ranks.

    Groups are shuffled by ``seed`` and the step, so that groups that finished early are spread over the updates; a
    group's responses stay together where ``train_batch_size`` allows.
    """
    size = settings.train_batch_size
    groups = samples_of(
        batch.groups,
        overlong_filtering=settings.overlong_filtering,
        estimator=settings.estimator,
        version=batch.version,
        clip_range=settings.clip_range,
    )
    plans: list[list[Update]] = [[] for _ in range(ranks)]
    for epoch in range(settings.max_epochs):
        random.Random(f"{settings.seed}/{batch.step}/{epoch}").shuffle(groups)
        samples = [sample for group in groups for sample in group]
        for start in range(0, len(samples), size):
            mini_batch = weighted(samples[start : start + size], settings.loss_agg_mode, settings.longest_response)
            shares = split_mini_batch(mini_batch, ranks, settings.max_tokens)
            for plan, micro_batches in zip(plans, shares, strict=True):
                plan.append(
                    Update(
                        micro_batches=micro_batches,
                        total_tokens=sum(sample.length for sample in mini_batch if sample.trained),
                        read_tokens=_tokens(mini_batch),
                    )
                )
    return tuple(RankPlan(updates=tuple(updates), step=batch.step) for updates in plans)


def weighted(samples: Sequence[Sample], mode: LossAggMode, longest: int) -> list[Sample]:
    """The samples of one mini-batch with the weights of their tokens in its loss."""
    weights = token_weights(
        [sample.group for sample in samples],
        [sample.length if sample.trained else 0 for sample in samples],
        mode=mode,
        longest=longest,
    )
    return [replace(sample, weight=weight) for sample, weight in zip(samples, weights, strict=True)]


def split_mini_batch(samples: Sequence[Sample], ranks: int, max_tokens: int) -> list[tuple[MicroBatch, ...]]:
    """Cut one mini-batch into equally many micro-batches per rank, of similar token counts, longest sequence first.

    Sequences are packed, so the cost of a micro-batch is its number of tokens. There are as few micro-batches as the
    budget allows; the longest sequences are dealt first, each to the micro-batch with the fewest tokens so far. The
    number of samples must be a multiple of ``ranks``.
    """
    if not samples or len(samples) % ranks:
        raise ValueError(f"a mini-batch of {len(samples)} responses cannot be spread over {ranks} trainer ranks")
    by_length = sorted(samples, key=lambda sample: sample.tokens, reverse=True)
    total = sum(sample.tokens for sample in samples)
    most_per_rank = len(samples) // ranks
    per_rank = min(max(1, -(-total // (ranks * max_tokens))), most_per_rank)
    while True:
        micro_batches = _deal(by_length, per_rank * ranks)
        if per_rank == most_per_rank or all(_fits(micro_batch, max_tokens) for micro_batch in micro_batches):
            break
        per_rank += 1
    micro_batches.sort(key=_tokens, reverse=True)
    shares: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for position, micro_batch in enumerate(micro_batches):
        lap, offset = divmod(position, ranks)
        shares[offset if lap % 2 == 0 else ranks - 1 - offset].append(tuple(micro_batch))
    return [tuple(share) for share in shares]


def _deal(by_length: Sequence[Sample], count: int) -> list[list[Sample]]:
    """Deal samples, longest first, to ``count`` micro-batches, each to the one with the fewest tokens."""
    micro_batches: list[list[Sample]] = [[] for _ in range(count)]
    loads = [(0, position) for position in range(count)]
    for sample in by_length:
        tokens, position = heapq.heappop(loads)
        micro_batches[position].append(sample)
        heapq.heappush(loads, (tokens + sample.tokens, position))
    return micro_batches


def _fits(micro_batch: Sequence[Sample], max_tokens: int) -> bool:
    """Whether a micro-batch is within the budget, or is a single sequence that exceeds it."""
    return len(micro_batch) == 1 or _tokens(micro_batch) <= max_tokens


def _tokens(micro_batch: Sequence[Sample]) -> int:
    return sum(sample.tokens for sample in micro_batch)
