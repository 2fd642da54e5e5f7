"""How a batch is cut: the gradient does not depend on it, nothing is lost, every rank does the same number of turns."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dapo_openrlhf.algorithm.advantage import CREDITS, batch_credits, group_norm
from dapo_openrlhf.algorithm.choices import EstimatorName, LossAggMode, PolicyLossType
from dapo_openrlhf.algorithm.correction import importance_weights
from dapo_openrlhf.algorithm.kl import kl_estimate
from dapo_openrlhf.algorithm.loss import aggregate, clipped_surrogate, policy_ratio
from dapo_openrlhf.pipeline.batch import (
    PlanSettings,
    RankPlan,
    Sample,
    Update,
    plan_batch,
    samples_of,
    split_mini_batch,
    weighted,
)
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup, TrainBatch

P, G = 6, 4


def make_batch(seed: int, *, step: int = 0, groups: int = P, responses: int = G, longest: int = 9) -> TrainBatch:
    """Groups with mixed rewards, lengths 1 .. ``longest``; about a fifth of the responses is truncated."""
    dice = random.Random(seed)

    def rollout(index: int) -> Rollout:
        right = index == 0 or (index > 1 and dice.random() < 0.5)  # never all right, never all wrong
        truncated = dice.random() < 0.2
        length = longest if truncated else dice.randint(1, longest)
        return Rollout(length=length, truncated=truncated, cut=False, correct=right, reward=1.0 if right else -1.0)

    return TrainBatch(
        step=step,
        version=PolicyVersion(step),
        groups=tuple(
            RolloutGroup(
                id=100 + position,
                prompt=Prompt(id=position, text="", label=""),
                prompt_length=dice.randint(1, 5),
                rollouts=tuple(rollout(index) for index in range(responses)),
                oldest_version=PolicyVersion(step),
                newest_version=PolicyVersion(step),
                engine=0,
                tokens=None,
            )
            for position in range(groups)
        ),
    )


def plan(batch: TrainBatch, **changes: Any) -> tuple[RankPlan, ...]:
    settings: dict[str, Any] = {
        "ranks": 2, "train_batch_size": 8, "max_epochs": 1, "max_tokens": 40, "overlong_filtering": True, "seed": 7,
        "estimator": "group_norm", "loss_agg_mode": "token-mean", "longest_response": LONGEST,
    } | changes  # fmt: skip
    ranks = settings.pop("ranks")
    return plan_batch(batch, PlanSettings(**settings), ranks=ranks)


def grouped(batch: TrainBatch, **changes: Any) -> list[list[Sample]]:
    settings: dict[str, Any] = {"overlong_filtering": True, "estimator": "group_norm", "version": batch.version}
    return samples_of(batch.groups, **(settings | changes))


def samples_in(updates: Iterable[Update]) -> list[Sample]:
    return [sample for update in updates for micro_batch in update.micro_batches for sample in micro_batch]


def key(sample: Sample) -> tuple[int, int]:
    return sample.group, sample.index


# ---------------------------------------------------------------- the gradient does not depend on the cut

VOCABULARY = 7
KL_COEF = 0.1
LONGEST = 9
MODES: list[LossAggMode] = [
    "token-mean", "seq-mean-token-mean", "prompt-mean-token-mean", "seq-mean-token-sum-norm",
]  # fmt: skip


class Policy:
    """A bigram model: the logits of the next token are a row of one table. Its whole gradient is one matrix."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def table() -> Tensor:
            return torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

        self.weights = table().requires_grad_()
        self.old = (self.weights + 0.3 * table()).detach()  # far enough for ratios on both sides of the clip range
        self.rollout = self.old + 0.2 * table()
        self._generator = generator
        self._tokens: dict[tuple[int, int], Tensor] = {}

    def tokens(self, sample: Sample) -> Tensor:
        """The response's tokens, after one that stands for the prompt; the same ones at every call."""
        if key(sample) not in self._tokens:
            self._tokens[key(sample)] = torch.randint(VOCABULARY, (sample.length + 1,), generator=self._generator)
        return self._tokens[key(sample)]

    def logprobs(self, table: Tensor, sample: Sample) -> Tensor:
        tokens = self.tokens(sample)
        return table.log_softmax(-1)[tokens[:-1], tokens[1:]]

    def micro_batch_loss(self, samples: Sequence[Sample], level: PolicyLossType = "ppo") -> Tensor:
        """As a trainer's rank does it: [B, T], right-padded, with the weights of the whole update."""
        width = max(sample.length for sample in samples)

        def padded(rows: Iterable[Tensor]) -> Tensor:
            return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])

        logprobs, old, rollout = (
            padded(self.logprobs(table, sample) for sample in samples)
            for table in (self.weights, self.old, self.rollout)
        )
        mask = padded(torch.full((sample.length,), float(sample.trained)) for sample in samples)
        weights, _ = importance_weights(old, rollout, mask, level="token", mode="clip", threshold=(0.0, 2.0))
        advantages = torch.tensor([[sample.advantage] for sample in samples], dtype=torch.float64)
        ratio = policy_ratio(logprobs, old, mask, level=level)
        losses, _ = clipped_surrogate(ratio, advantages, eps_low=0.2, eps_high=0.28, dual_clip=None)
        losses = losses + KL_COEF * kl_estimate(logprobs, rollout, estimator="k3")
        return aggregate(losses * weights, mask, torch.tensor([[s.weight] for s in samples], dtype=torch.float64))

    def unsplit_loss(
        self, samples: Sequence[Sample], batch: TrainBatch, mode: LossAggMode, level: PolicyLossType = "ppo"
    ) -> Tensor:
        """Straight from the equations: response by response, no padding, no masks, from the batch itself."""
        totals, prompts = [], []
        for sample in samples:
            group = batch.groups[sample.group]
            if group.rollouts[sample.index].truncated:
                continue
            advantage = group_norm([rollout.reward for rollout in group.rollouts])[sample.index]
            new, old, rollout = (self.logprobs(t, sample) for t in (self.weights, self.old, self.rollout))
            ratio = (new - old).exp() if level == "ppo" else (new - old).mean().exp()
            kl = (rollout - new).exp() - 1 - (rollout - new)
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            totals.append((old - rollout).exp().clamp(max=2.0) * (KL_COEF * kl - surrogate))
            prompts.append(sample.group)
        if mode == "token-mean":
            return torch.cat(totals).mean()
        if mode == "seq-mean-token-mean":
            return torch.stack([total.mean() for total in totals]).mean()
        if mode == "seq-mean-token-sum-norm":
            return torch.stack([total.sum() / LONGEST for total in totals]).mean()
        return torch.stack(
            [
                torch.cat([total for total, its in zip(totals, prompts, strict=True) if its == prompt]).mean()
                for prompt in sorted(set(prompts))
            ]
        ).mean()

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.weights)[0]


@pytest.mark.long
@pytest.mark.parametrize("level", ["ppo", "gspo"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("train_batch_size", [8, 12])  # whole groups of 4
@pytest.mark.parametrize("max_tokens", [1, 25, 60, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_loss_and_gradient_do_not_depend_on_the_cut(
    ranks: int, max_tokens: int, train_batch_size: int, mode: LossAggMode, level: PolicyLossType
) -> None:
    check_cut(0, ranks, max_tokens, train_batch_size, mode, level)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_loss_and_gradient_do_not_depend_on_the_cut_where_updates_cut_groups(seed: int, mode: LossAggMode) -> None:
    check_cut(seed, 2, 25, 6, mode, "ppo")


def check_cut(
    seed: int, ranks: int, max_tokens: int, train_batch_size: int, mode: LossAggMode, level: PolicyLossType
) -> None:
    batch = make_batch(seed)
    policy = Policy(seed)
    plans = plan(
        batch,
        ranks=ranks,
        max_tokens=max_tokens,
        seed=seed,
        train_batch_size=train_batch_size,
        loss_agg_mode=mode,
        longest_response=LONGEST,
    )
    truncated = 0
    for number in range(P * G // train_batch_size):
        updates = [rank.updates[number] for rank in plans]
        samples = samples_in(updates)
        truncated += sum(not sample.trained for sample in samples)
        whole = policy.unsplit_loss(samples, batch, mode, level)
        gradient_of_whole = policy.gradient(whole)
        shares = [
            policy.micro_batch_loss(micro_batch, level) for update in updates for micro_batch in update.micro_batches
        ]
        gradient = sum((policy.gradient(share) for share in shares), torch.zeros_like(gradient_of_whole))
        assert sum(share.item() for share in shares) == pytest.approx(whole.item(), abs=1e-9)
        assert torch.allclose(gradient, gradient_of_whole, rtol=0, atol=1e-9)
        assert gradient_of_whole.abs().max() > 1e-3  # a gradient of nothing would be invariant too
    assert truncated > 0


def test_invariance_would_notice_a_denominator_of_its_own_per_micro_batch() -> None:
    """The obvious mistake, made on purpose: the mean of micro-batch means is another gradient."""
    batch, policy = make_batch(0), Policy(0)
    (rank,) = plan(batch, ranks=1, max_tokens=25)
    update = rank.updates[0]
    whole = policy.gradient(policy.unsplit_loss(samples_in([update]), batch, "token-mean"))
    wrong = torch.zeros_like(whole)
    for micro_batch in update.micro_batches:
        own = weighted(micro_batch, "token-mean", LONGEST)
        wrong += policy.gradient(policy.micro_batch_loss(own)) / len(update.micro_batches)
    assert len(update.micro_batches) > 1
    assert not torch.allclose(wrong, whole, rtol=0, atol=1e-3)


def test_a_mini_batch_of_truncated_responses_has_no_gradient() -> None:
    policy = Policy(0)
    samples = tuple(
        Sample(group=0, index=index, prompt_length=2, length=3 + index, advantage=1.0, trained=False)
        for index in range(3)
    )
    for mode in MODES:
        loss = policy.micro_batch_loss(weighted(samples, mode, LONGEST))
        assert loss == 0
        assert not policy.gradient(loss).any()


# ---------------------------------------------------------------- samples


def test_samples_carry_their_groups_advantages() -> None:
    batch = make_batch(3)
    groups = grouped(batch)
    assert [len(group) for group in groups] == [G] * P
    for position, (samples, group) in enumerate(zip(groups, batch.groups, strict=True)):
        assert [key(sample) for sample in samples] == [(position, index) for index in range(G)]
        assert [sample.advantage for sample in samples] == group_norm([rollout.reward for rollout in group.rollouts])
        assert [sample.length for sample in samples] == [rollout.length for rollout in group.rollouts]
        assert [sample.trained for sample in samples] == [not rollout.truncated for rollout in group.rollouts]
        assert [sample.tokens for sample in samples] == [group.prompt_length + r.length for r in group.rollouts]


@pytest.mark.parametrize("estimator", CREDITS)
def test_samples_carry_the_credit_of_their_estimator(estimator: EstimatorName) -> None:
    batch = make_batch(3)
    groups = grouped(batch, estimator=estimator)
    every = [rollout.reward for group in batch.groups for rollout in group.rollouts]
    mean = math.fsum(every) / len(every) if estimator == "flash_reinforce" else 0.0  # the whole batch's
    for samples, group in zip(groups, batch.groups, strict=True):
        rewards = [rollout.reward for rollout in group.rollouts]
        assert [sample.advantage for sample in samples] == [credit - mean for credit in CREDITS[estimator](rewards)]


def test_credits_are_bounded_after_the_baseline() -> None:
    # Rewards 1, 0, 0 and 0, 0, 6; mean 7/6. flash_reinforce: -1/6, -7/6 twice; -7/6 twice, 29/6. Bounds -1 and 2.
    credits = batch_credits([[1.0, 0.0, 0.0], [0.0, 0.0, 6.0]], estimator="flash_reinforce", clip_range=(-1.0, 2.0))
    assert credits == [pytest.approx([-1 / 6, -1.0, -1.0]), pytest.approx([-1.0, -1.0, 2.0])]
    assert batch_credits([[1.0], [1.0]], estimator="flash_reinforce") == [[0.0], [0.0]], "equal rewards are no gradient"


def test_truncated_responses_shape_the_group_even_when_they_are_masked() -> None:
    # Overlong filtering masks the loss, not the reward: the others are still compared with the truncated one.
    batch = make_batch(3)
    masked, unmasked = (
        [[sample.advantage for sample in group] for group in grouped(batch, overlong_filtering=filtering)]
        for filtering in (True, False)
    )
    assert masked == unmasked


def test_without_overlong_filtering_everything_is_trained() -> None:
    groups = grouped(make_batch(3), overlong_filtering=False)
    assert all(sample.trained for group in groups for sample in group)


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("train_batch_size", [4, 8, 12, 24])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_every_sample_exactly_once_per_epoch(ranks: int, train_batch_size: int, max_epochs: int) -> None:
    plans = plan(make_batch(0), ranks=ranks, train_batch_size=train_batch_size, max_epochs=max_epochs)
    updates = P * G // train_batch_size
    assert [len(rank.updates) for rank in plans] == [updates * max_epochs] * ranks
    every = Counter((group, index) for group in range(P) for index in range(G))
    for epoch in range(max_epochs):
        of_epoch = [update for rank in plans for update in rank.updates[epoch * updates : (epoch + 1) * updates]]
        assert Counter(key(sample) for sample in samples_in(of_epoch)) == every


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_each_update_has_its_size_and_its_denominators(ranks: int, seed: int) -> None:
    batch = make_batch(seed)
    plans = plan(batch, ranks=ranks, seed=seed)
    for number in range(P * G // 8):
        updates = [rank.updates[number] for rank in plans]
        rollouts = [batch.groups[sample.group].rollouts[sample.index] for sample in samples_in(updates)]
        trained = [rollout for rollout in rollouts if not rollout.truncated]
        assert len(rollouts) == 8
        assert {update.total_tokens for update in updates} == {sum(rollout.length for rollout in trained)}
        assert {s.weight for s in samples_in(updates) if s.trained} == {1 / sum(r.length for r in trained)}


def test_denominators_count_truncated_responses_when_they_are_trained() -> None:
    batch = make_batch(1)
    (rank,) = plan(batch, ranks=1, train_batch_size=24, overlong_filtering=False)
    (update,) = rank.updates
    assert update.total_tokens == sum(group.response_tokens for group in batch.groups)
    assert {sample.weight for sample in samples_in([update])} == {1 / update.total_tokens}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("max_tokens", [1, 13, 25, 40, 10_000])
def test_equally_many_micro_batches_per_rank_and_none_empty(ranks: int, max_tokens: int) -> None:
    plans = plan(make_batch(0), ranks=ranks, max_tokens=max_tokens)
    for updates in zip(*(rank.updates for rank in plans), strict=True):
        assert len({len(update.micro_batches) for update in updates}) == 1
        assert all(micro_batch for update in updates for micro_batch in update.micro_batches)


def test_whole_groups_share_an_update() -> None:
    for rank in plan(make_batch(0), ranks=1, train_batch_size=2 * G):
        for update in rank.updates:
            assert set(Counter(sample.group for sample in samples_in([update])).values()) == {G}


def test_the_same_seed_and_step_give_the_same_plan() -> None:
    assert plan(make_batch(0, step=3), seed=7, max_epochs=2) == plan(make_batch(0, step=3), seed=7, max_epochs=2)


def test_seed_step_and_epoch_each_change_the_order() -> None:
    def order(update_range: slice = slice(0, 3), **changes: int) -> list[frozenset[int]]:
        step = changes.pop("step", 0)
        (rank,) = plan(make_batch(0, step=step), ranks=1, max_epochs=2, **changes)
        return [frozenset(sample.group for sample in samples_in([update])) for update in rank.updates[update_range]]

    first = order(seed=7)
    assert any(order(seed=seed) != first for seed in (8, 9))
    assert any(order(seed=7, step=step) != first for step in (1, 2))
    assert order(slice(3, 6), seed=7) != first


def test_planning_leaves_the_batch_alone() -> None:
    batch = make_batch(0)
    plan(batch)
    assert batch == make_batch(0)


def test_a_rank_names_the_groups_it_needs() -> None:
    for rank in plan(make_batch(0), ranks=4):
        needed = {sample.group for sample in samples_in(rank.updates)}
        assert rank.groups == tuple(sorted(needed))


# ---------------------------------------------------------------- one mini-batch


def of_lengths(lengths: Sequence[int]) -> list[Sample]:
    return [
        Sample(group=position, index=0, prompt_length=1, length=length, advantage=0.0, trained=True)
        for position, length in enumerate(lengths)
    ]


def test_micro_batches_are_alike_in_tokens() -> None:
    # With a prompt token each: 10, 9, 3, 3, 3 and 2 tokens, 30 in all: two micro-batches of at most 20, of 15 each.
    (share,) = split_mini_batch(of_lengths([2, 9, 2, 8, 1, 2]), 1, 20)
    assert sorted(sorted(sample.length for sample in micro_batch) for micro_batch in share) == [[1, 2, 9], [2, 2, 8]]


def test_no_more_micro_batches_than_the_budget_needs() -> None:
    # 4 x 5 tokens fill a budget of 20 exactly; one token less and it takes two.
    assert [len(share) for share in split_mini_batch(of_lengths([4, 4, 4, 4]), 1, 20)] == [1]
    assert [len(share) for share in split_mini_batch(of_lengths([4, 4, 4, 4]), 1, 19)] == [2]


def test_every_rank_has_one() -> None:
    # All four fit one micro-batch; two ranks need two, four ranks four.
    assert [[len(m) for m in share] for share in split_mini_batch(of_lengths([3, 3, 3, 3]), 2, 100)] == [[2], [2]]
    assert [[len(m) for m in share] for share in split_mini_batch(of_lengths([3, 3, 3, 3]), 4, 100)] == [[1]] * 4


def test_dealt_back_and_forth() -> None:
    # One sequence each, from the dearest: 8 and 5 to rank 0, 7 and 6 to rank 1: 13 response tokens each.
    shares = split_mini_batch(of_lengths([5, 6, 7, 8]), 2, 1)
    assert [[micro_batch[0].length for micro_batch in share] for share in shares] == [[8, 5], [7, 6]]


@pytest.mark.parametrize(("count", "ranks"), [(0, 1), (3, 2), (5, 4), (1, 2)])
def test_a_mini_batch_that_ranks_cannot_share_is_refused(count: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"{count} responses cannot be spread over {ranks} trainer ranks"):
        split_mini_batch(of_lengths([1] * count), ranks, 100)


@given(ranks=st.integers(1, 8), max_tokens=st.integers(1, 200), data=st.data())
def test_any_mini_batch(ranks: int, max_tokens: int, data: st.DataObject) -> None:
    per_rank = data.draw(st.integers(1, 6))
    lengths = data.draw(st.lists(st.integers(1, 99), min_size=per_rank * ranks, max_size=per_rank * ranks))
    samples = of_lengths(lengths)
    shares = split_mini_batch(samples, ranks, max_tokens)
    micro_batches = [micro_batch for share in shares for micro_batch in share]
    # every sample once
    assert sorted(sample.group for micro_batch in micro_batches for sample in micro_batch) == list(range(len(samples)))
    # as many turns on every rank, none of them empty
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    assert all(micro_batches)
    # the budget, except for a sequence that is too long by itself
    costs = [[sum(sample.tokens for sample in m) for m in share] for share in shares]
    for micro_batch, cost in zip(micro_batches, (c for share in costs for c in share), strict=True):
        assert cost <= max_tokens or len(micro_batch) == 1
    # alike in cost: no two ranks differ by more than the dearest micro-batch
    totals = [sum(share) for share in costs]
    assert max(totals) - min(totals) <= max(map(max, costs))
