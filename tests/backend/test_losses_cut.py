"""Every loss and correction through a trainer rank: the gradient does not depend on how a batch is cut, and which forward
passes are made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from plain_model import Bigram, PlainModel, random_batch
from torch import Tensor

from dapo_openrlhf.algorithm.choices import CORRECTIONS, POLICY_LOSSES, PolicyLossType
from dapo_openrlhf.backend.messages import GroupTokens, VersionRuns
from dapo_openrlhf.backend.trainer import attention
from dapo_openrlhf.backend.trainer.collate import Tensors, collate
from dapo_openrlhf.backend.trainer.look_ahead import LookAhead
from dapo_openrlhf.backend.trainer.packing import Packing
from dapo_openrlhf.backend.trainer.peers import Peers
from dapo_openrlhf.backend.trainer.per_sample import Known
from dapo_openrlhf.backend.trainer.policy import Policy
from dapo_openrlhf.backend.trainer.policy_loss import policy_loss
from dapo_openrlhf.backend.trainer.spans import Spans
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, GuardSettings, LossSettings, TrainSettings
from dapo_openrlhf.pipeline.batch import PlanSettings, RankPlan, plan_batch

VOCABULARY, STEP = 11, 3
LOSS = LossSettings(
    eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
    old_logprobs="recompute", is_correction_level="token", is_correction_mode="clip",
    is_correction_threshold=(0.0, 2.0), temperature=1.0,
)  # fmt: skip
ADVANTAGES = AdvantageSettings(
    critic=False, whitened=False, gamma=1.0, lambd=1.0, no_std_norm=False, kl_coef=0.0, kl_estimator="k3"
)
KINDS: tuple[PolicyLossType, ...] = get_args(PolicyLossType)


class CountedBigram(Bigram):
    """Counts its forward passes without a gradient, which are those before the first update."""

    looked_ahead = 0

    def forward(self, **inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.looked_ahead += not torch.is_grad_enabled()
        return super().forward(**inputs)


def a_batch() -> tuple[Any, dict[int, GroupTokens]]:
    """Four groups of four responses, sampled by versions 0 to 3, often several to a response."""
    batch, fresh = random_batch(STEP, groups=4, responses=4, longest=8, vocabulary=VOCABULARY)
    tokens = {}
    for position, group in fresh.items():
        count = len(group.response_ids)
        ends = np.unique([count // 4 + 1, count // 2 + 1, count])
        runs = VersionRuns(versions=np.array([0, 2, 3][-len(ends) :], np.int32), ends=ends)
        tokens[position] = dataclasses.replace(group, versions=runs)
    return batch, tokens


def plans(ranks: int, max_tokens: int, mode: str) -> tuple[RankPlan, ...]:
    settings = PlanSettings(
        train_batch_size=8, max_epochs=1, max_tokens=max_tokens, overlong_filtering=False, seed=0, estimator="group_norm",
        loss_agg_mode=mode, longest_response=8,
    )  # fmt: skip
    return plan_batch(a_batch()[0], settings, ranks=ranks)


def look_ahead(model: CountedBigram, loss: LossSettings, peers: Peers) -> LookAhead:
    policy = Policy(PlainModel(model, lr=0.01), Packing(attention.NAME), temperature=1.0, reference=None)
    settings = TrainSettings(loss=loss, advantages=ADVANTAGES, guard=GuardSettings(max_bad_updates=1, folder="unused"))
    return LookAhead(policy=policy, critic=None, settings=settings, peers=peers, spans=Spans("trainer 0"))


def gradients(
    loss: LossSettings, *, ranks: int, max_tokens: int, largest_square: float
) -> tuple[Tensor, Mapping[str, float]]:
    """The gradient of a step's second update over all ranks, and its sums; old log-probs are of other weights."""
    _, tokens = a_batch()
    whole = POLICY_LOSSES[loss.policy_loss_type].of_response
    policy, old = Bigram(VOCABULARY, seed=0), Bigram(VOCABULARY, seed=0)
    with torch.no_grad():
        policy.table += 0.3 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
    packing = Packing(attention.NAME)
    sums: dict[str, float] = {}
    for plan in plans(ranks, max_tokens, "seq-mean-token-mean" if whole else "token-mean"):
        update = plan.updates[1]
        for samples in update.micro_batches:
            batch = collate(samples, tokens, device=torch.device("cpu"))
            logprobs, entropies = (batch.unflatten(x) for x in forward(policy, packing, batch))
            before = batch.unflatten(forward(old, packing, batch)[0]).detach()
            rows = {(s.group, s.index): before[row, : s.length] for row, s in enumerate(batch.samples)}
            known = Known(old_logprobs=rows, version=STEP, largest_square=largest_square)
            total, found = policy_loss(
                batch, logprobs, entropies, known, loss, total_tokens=update.total_tokens, first=False, progress=0.5
            )
            total.backward()
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    assert policy.table.grad is not None
    return policy.table.grad, sums


def forward(model: Bigram, packing: Packing, batch: Tensors) -> tuple[Tensor, Tensor]:
    logprobs, entropies, _ = model(**packing.inputs(batch), targets=batch.targets, temperature=1.0)
    return logprobs, entropies


def corrected(name: str | None, kind: PolicyLossType) -> LossSettings:
    if name is None:
        return dataclasses.replace(LOSS, policy_loss_type=kind)
    settings: dict[str, Any] = dict(CORRECTIONS[name])  # type: ignore[index]
    if name == "mis":
        settings["is_correction_threshold"] = (0.2, 5.0)  # or random log-probs would all be rejected
    return dataclasses.replace(LOSS, policy_loss_type=kind, **settings)


CASES = [(kind, None) for kind in KINDS] + [("ppo", name) for name in CORRECTIONS]


@pytest.mark.parametrize(("kind", "correction"), CASES)
@pytest.mark.parametrize("old_logprobs", ["recompute", "interpolate"])
def test_the_gradient_does_not_depend_on_ranks_and_micro_batches(
    kind: PolicyLossType, correction: str | None, old_logprobs: Any
) -> None:
    loss = dataclasses.replace(corrected(correction, kind), old_logprobs=old_logprobs)
    whole, sums = gradients(loss, ranks=1, max_tokens=10_000, largest_square=0.5)
    assert whole.abs().max() > 1e-3
    for ranks, max_tokens in ((1, 1), (2, 40), (4, 1)):
        cut, added = gradients(loss, ranks=ranks, max_tokens=max_tokens, largest_square=0.5)
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)
        assert added == pytest.approx(sums, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_left_is_no_gradient_and_counted(kind: PolicyLossType) -> None:
    """Every token is rejected; a response's ratio has no weights, and is left alone."""
    if POLICY_LOSSES[kind].of_response:
        return
    loss = dataclasses.replace(corrected("icepop", kind), is_correction_threshold=(1e6, 2e6))
    gradient, sums = gradients(loss, ranks=1, max_tokens=40, largest_square=math.inf)
    assert gradient.abs().max() == 0
    assert sums["is_outside"] == sums["tokens"] > 0
    assert sums["is_weight"] == 0


@pytest.mark.parametrize(("ranks", "max_tokens"), [(1, 1), (2, 40), (4, 10)])
def test_the_bound_of_m2po_is_that_of_the_whole_batch(ranks: int, max_tokens: int) -> None:
    """However it is cut; here each rank is played in turn, and adds its counts to those of the others."""
    loss = corrected("m2po", "ppo")
    _, tokens = a_batch()
    (plan,) = plans(1, 10_000, "token-mean")
    alone = look_ahead(CountedBigram(VOCABULARY, seed=0), loss, Peers()).known(plan, tokens).largest_square
    assert 0 < alone < math.inf
    counts: list[Tensor] = []

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Played(Peers):
        def total(self, tensor: Tensor) -> Tensor:
            counts.append(tensor.clone())
            return torch.stack(counts).sum(0)

    for rank, part in enumerate(plans(ranks, max_tokens, "token-mean")):
        peers = Played(count=ranks, rank=rank)
        bound = look_ahead(CountedBigram(VOCABULARY, seed=0), loss, peers).known(part, tokens).largest_square
    assert bound == alone, "the last rank has heard of all"


@pytest.mark.parametrize(
    ("old_logprobs", "correction", "looked_at"),
    [("recompute", None, 1), ("rollout", None, 0), ("interpolate", None, 0), ("recompute", "m2po", 2)],
)
def test_forward_passes_before_the_first_update(old_logprobs: Any, correction: str | None, looked_at: int) -> None:
    """Of a step's two updates: the second's for its old log-probs, none if they are interpolated, both for M2PO."""
    model = CountedBigram(VOCABULARY, seed=0)
    loss = dataclasses.replace(corrected(correction, "ppo"), old_logprobs=old_logprobs)
    (plan,) = plans(1, 10_000, "token-mean")
    known = look_ahead(model, loss, Peers()).known(plan, a_batch()[1])
    assert len(plan.updates) == 2
    assert model.looked_ahead == looked_at
    assert known.version == STEP
