"""The loss of one micro-batch as a trainer rank computes it, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dapo_openrlhf.backend.messages import GroupTokens, VersionRuns
from dapo_openrlhf.backend.trainer.collate import Tensors, collate
from dapo_openrlhf.backend.trainer.per_sample import Known
from dapo_openrlhf.backend.trainer.policy_loss import policy_loss
from dapo_openrlhf.backend.trainer.step_settings import LossSettings
from dapo_openrlhf.pipeline.batch import Sample, weighted

DAPO = LossSettings(
    eps_clip_low_high=(0.2, 0.28), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k3",
    old_logprobs="recompute", is_correction_level="token", is_correction_mode="clip",
    is_correction_threshold=(0.0, 2.0), temperature=1.0,
)  # fmt: skip
"""One prompt, two responses of two tokens and one, advantages 1 and -1."""
OLD = torch.tensor([[0.2, 0.2], [0.2, 1.0]]).log()
NEW = torch.tensor([[0.3, 0.2], [0.1, 1.0]]).log()
"""Ratios 1.5 and 1; 0.5."""
ROLLOUT = torch.tensor([[0.05, 0.4], [0.2, 1.0]]).log()
"""Importance weights old / rollout 4, truncated to 2, and 1/2; 1."""
REFERENCE = torch.tensor([[0.15, 0.2], [0.2, 1.0]]).log()
"""Log ratios to the new policy ln 2 and 0; -ln 2."""


def micro_batch(mode: str = "token-mean") -> Tensors:
    samples = weighted(
        [
            Sample(group=0, index=0, prompt_length=2, length=2, advantage=1.0, trained=True),
            Sample(group=0, index=1, prompt_length=2, length=1, advantage=-1.0, trained=True),
        ],
        mode,  # type: ignore[arg-type]
        10,
    )
    tokens = GroupTokens(
        prompt_ids=np.array([5, 6], np.int32),
        response_ids=np.array([7, 8, 9], np.int32),
        rollout_logprobs=np.array([*ROLLOUT[0], ROLLOUT[1, 0]], np.float32),
        offsets=np.array([0, 2, 3]),
        versions=VersionRuns(versions=np.array([4, 6], np.int32), ends=np.array([1, 3])),
    )
    return collate(tuple(samples), {0: tokens}, device=torch.device("cpu"))


def fresh_micro_batch(*fresh: bool) -> Tensors:
    batch = micro_batch()
    return replace(batch, fresh=torch.tensor([[float(one)] for one in fresh]))


def fresh_sums(fresh: Tensors, *, first: bool, old_logprobs: str = "recompute") -> dict[str, float]:
    settings = replace(DAPO, old_logprobs=old_logprobs)
    known = Known(old_logprobs=by_sample(OLD))
    _, sums = policy_loss(fresh, NEW, torch.zeros_like(NEW), known, settings, total_tokens=3, first=first)
    return {name: float(value) for name, value in sums.items() if name.startswith("fresh")}


def test_disagreement_counts_tokens_of_the_steps_own_weights_only() -> None:
    # k3 of KL(rollout || trainer): w - 1 - ln w of w = trainer / rollout. In a step's first update the trainer's are those
    # of the forward pass, 6 and 1/2 for the first response; the second's is 1/2.
    first = 6 - 1 - math.log(6) + 0.5 - 1 - math.log(0.5)
    second = 0.5 - 1 - math.log(0.5)
    assert fresh_sums(fresh_micro_batch(True, False), first=True) == pytest.approx(
        {"fresh_kl": first, "fresh_tokens": 2}
    )
    assert fresh_sums(fresh_micro_batch(False, True), first=True) == pytest.approx(
        {"fresh_kl": second, "fresh_tokens": 1}
    )
    assert fresh_sums(fresh_micro_batch(False, False), first=True) == {"fresh_kl": 0, "fresh_tokens": 0}


def test_later_updates_compare_what_the_step_began_with() -> None:
    # 4 and 1/2; 1: of the log-probs before the first update, not of the weights that have moved since.
    began = 4 - 1 - math.log(4) + 0.5 - 1 - math.log(0.5)
    batch = fresh_micro_batch(True, True)
    assert fresh_sums(batch, first=False) == pytest.approx({"fresh_kl": began, "fresh_tokens": 3})
    assert fresh_sums(batch, first=False, old_logprobs="rollout") == {}, "nobody computed them"
    with_engines = fresh_sums(batch, first=True, old_logprobs="rollout")
    assert with_engines["fresh_kl"] > 1, "the engine's own log-probs as the old ones hide nothing"


def by_sample(rows: Tensor) -> dict[tuple[int, int], Tensor]:
    return {(0, 0): rows[0], (0, 1): rows[1, :1]}


def loss_of(
    settings: LossSettings, known: Known, *, mode: str = "token-mean", first: bool = False
) -> tuple[float, dict[str, float]]:
    zeros = torch.zeros_like(NEW)
    loss, sums = policy_loss(micro_batch(mode), NEW, zeros, known, settings, total_tokens=3, first=first)
    return loss.item(), {name: value.item() for name, value in sums.items()}


def test_dapo() -> None:
    # Surrogate losses -1.28 (clipped), -1 and 0.8 (clipped); weights 2, 1/2, 1: -2.56 - 0.5 + 0.8 over 3 tokens.
    loss, sums = loss_of(DAPO, Known(old_logprobs=by_sample(OLD)))
    assert loss == pytest.approx(-2.26 / 3, rel=1e-6)
    assert sums["tokens"] == 3
    assert sums["clip_fraction"] == 2
    assert sums["ratio"] == pytest.approx(3.0)
    assert sums["is_weight"] == pytest.approx(3.5)
    assert "kl" not in sums


def test_the_first_update_is_on_policy() -> None:
    # Ratios 1 whatever is known; weights new / rollout 6 (to 2), 1/2 and 1/2: (-2 - 0.5 + 0.5) / 3.
    loss, sums = loss_of(DAPO, Known(), first=True)
    assert loss == pytest.approx(-2 / 3, rel=1e-6)
    assert sums["ratio"] == 3.0
    assert sums["clip_fraction"] == 0


def test_rollout_logprobs_as_the_denominator() -> None:
    # Ratios 6 (to 1.28), 1/2 and 1/2 (to 0.8), no other correction: (-1.28 - 0.5 + 0.8) / 3.
    loss, sums = loss_of(replace(DAPO, old_logprobs="rollout"), Known(), first=True)
    assert loss == pytest.approx(-0.98 / 3, rel=1e-6)
    assert sums["is_weight"] == 3.0


def test_grpo() -> None:
    # Clip 0.2: -1.2, -1, 0.8; k3 ln 2 - 1/2, 0 and 1 - ln 2; weights off; means per response, then over both:
    # (-2.2 / 2 + 0.8) / 2 = -0.15. KL: 0.193147 + 0.306853 = 0.5, a mean over the three tokens: 0.04 / 6 is added.
    settings = replace(DAPO, eps_clip_low_high=(0.2, 0.2), kl_coef=0.04, is_correction_level="off")
    known = Known(old_logprobs=by_sample(OLD), ref_logprobs=by_sample(REFERENCE))
    loss, sums = loss_of(settings, known, mode="seq-mean-token-mean")
    assert loss == pytest.approx(-0.15 + 0.04 / 6, abs=1e-6)
    assert sums["kl"] == pytest.approx(0.5, rel=1e-6)


def test_kl_in_the_reward_is_measured_but_no_term_of_the_loss() -> None:
    known = Known(old_logprobs=by_sample(OLD), ref_logprobs=by_sample(REFERENCE))
    loss, sums = loss_of(replace(DAPO, kl_estimator="k1"), known)
    assert loss == pytest.approx(-2.26 / 3, rel=1e-6)
    assert sums["kl"] == pytest.approx(0.0, abs=1e-6)  # ln 2 + 0 - ln 2


def test_advantages_of_single_tokens() -> None:
    # As a critic gives them: 0.5, -2 and 3 in place of 1, 1 and -1. Losses -0.64, 2, -1.5; weights 2, 1/2, 1.
    known = Known(
        old_logprobs=by_sample(OLD), advantages={(0, 0): torch.tensor([0.5, -2.0]), (0, 1): torch.tensor([3.0])}
    )
    loss, _ = loss_of(DAPO, known)
    assert loss == pytest.approx((-1.28 + 1.0 - 1.5) / 3, rel=1e-6)


def test_gspo() -> None:
    # Ratios of responses: sqrt(1.5 * 1) = 1.224745 (within 1.28) and 0.5 (to 0.8); weights off, mean of both.
    settings = replace(DAPO, policy_loss_type="gspo", is_correction_level="off")
    loss, sums = loss_of(settings, Known(old_logprobs=by_sample(OLD)), mode="seq-mean-token-mean")
    assert loss == pytest.approx((-1.224745 + 0.8) / 2, rel=1e-5)
    assert sums["clip_fraction"] == 1
