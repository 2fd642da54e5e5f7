"""``python seam_rank.py PORT MODEL CRITIC STAGE OFFLOAD``: a rank under DeepSpeed beside the same rank on plain models of torch.

Both are in float32 and train the same two rollout steps of PPO: two updates each, of several micro-batches, with a
reference, a critic and clipped gradients.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from leaving import leave

RATES = {"actor": 1e-3, "critic": 1e-2}
EPS = 1e-4
"""Of Adam's denominator: with 1e-8 a gradient's rounding error alone may turn a step around."""
MAX_NORM = 0.05
"""Below all gradients' norms here."""
SUMS = {"rel": 2e-4, "abs": 2e-4}
"""Of sums over some hundred tokens, each off by float32's rounding in another order."""
NORMS = {"rel": 1e-4}
WEIGHTS = 1e-6
"""Of weights that moved by up to 4e-3."""


def main(port: str, model: str, critic: str, stage: str, offload: str) -> None:
    """Raise unless losses, gradient norms, all other sums and the updated weights are the same."""
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import pytest
    import torch
    from plain_model import random_batch
    from tiny_model import CHARACTERS

    from dapo_openrlhf.backend.trainer.loading import load_rank
    from dapo_openrlhf.backend.trainer.spans import Spans
    from dapo_openrlhf.backend.trainer.step_settings import Beginning
    from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch

    torch.set_num_threads(1)
    plan = PlanSettings(
        train_batch_size=8, max_epochs=1, max_tokens=40, overlong_filtering=False, seed=0, estimator="gae",
        loss_agg_mode="token-mean", longest_response=12,
    )  # fmt: skip
    strategy = strategy_of(model, critic, int(stage), offload=offload == "offload")
    strategy.setup_distributed()
    beginning = Beginning(total_updates=4, updates_done=0, first_step=0, checkpoint=None, reference=model)
    loaded = load_rank(strategy, settings(), beginning, spans=Spans("DeepSpeed"))
    rank, plain = plain_rank(model, critic)
    assert loaded.ready.parameters == plain.parameter_count
    before = {name: tensor.clone() for name, tensor in plain.whole().tensors()}
    for step in range(2):
        batch, tokens = random_batch(step, groups=4, responses=4, longest=12, vocabulary=len(CHARACTERS), first_token=2)
        (cut,) = plan_batch(batch, plan, ranks=1)
        assert [len(update.micro_batches) > 1 for update in cut.updates] == [True, True]
        one, other = loaded.rank.train(cut, tokens), rank.train(cut, tokens)
        assert [outcome.not_finite for outcome in one.outcomes + other.outcomes] == [{}] * 4
        assert {"loss", "value_loss", "kl", "entropy", "ratio"} <= one.sums.keys()
        assert dict(one.sums) == pytest.approx(dict(other.sums), **SUMS)
        assert dict(one.values) == pytest.approx(dict(other.values), **NORMS)
        assert min(one.values["grad_norm"], one.values["critic_grad_norm"]) > MAX_NORM, "clipping is part of a step"
    after = dict(plain.whole().tensors())
    found = {name: tensor.clone() for name, tensor in loaded.weights._whole.tensors()}
    assert found.keys() == after.keys()
    moved = max((after[name] - before[name]).abs().max().item() for name in after)
    assert moved > 1e-3, moved
    apart = max((after[name] - found[name]).abs().max().item() for name in after)
    assert apart < WEIGHTS, apart


def settings(*, critic: bool = True) -> Any:
    """PPO's."""
    from dapo_openrlhf.backend.trainer.step_settings import (
        AdvantageSettings,
        GuardSettings,
        LossSettings,
        TrainSettings,
    )

    return TrainSettings(
        loss=LossSettings(
            eps_clip_low_high=(0.2, 0.2), dual_clip=None, policy_loss_type="ppo", kl_coef=0.0, kl_estimator="k1",
            old_logprobs="recompute", is_correction_level="token", is_correction_mode="clip",
            is_correction_threshold=(0.0, 2.0), temperature=0.8,
        ),
        advantages=AdvantageSettings(
            critic=critic, whitened=True, gamma=1.0, lambd=0.95, no_std_norm=False, kl_coef=0.01, kl_estimator="k1"
        ),
        guard=GuardSettings(max_bad_updates=1, folder="unused"),
    )  # fmt: skip


def strategy_of(model: str, critic: str, stage: int, *, offload: bool) -> Any:
    """As the configuration would make it."""
    from dapo_openrlhf.backend.device import Device
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    adam = {
        f"{name}.adam.{key}": value
        for name, rate in RATES.items()
        for key, value in {"lr": rate, "eps": EPS, "betas": (0.9, 0.999), "weight_decay": 0.0}.items()
    }
    others = {
        "actor.model_name_or_path": model,
        "critic.model_name_or_path": critic,
        "actor.gradient_checkpointing_enable": False,
        "actor.lr_scheduler": "constant",
        "actor.lr_warmup_ratio": 0.0,
        "actor.max_norm": MAX_NORM,
        "critic.value_clip": 0.2,
        "ds.zero_stage": stage,
        "ds.adam_offload": offload,
        "ds.param_dtype": "fp32",
        "ds.attn_implementation": "sdpa",
        "train.batch_size": 8,
    }
    return Strategy(openrlhf_namespace(adam | others), device=Device(kind="cpu", threads=1))


def plain_rank(model: str, critic: str) -> tuple[Any, Any]:
    """The same rank on plain models, and its policy."""
    from plain_model import PlainModel

    from dapo_openrlhf.backend.trainer.critic import Critic
    from dapo_openrlhf.backend.trainer.models import Models
    from dapo_openrlhf.backend.trainer.peers import Peers
    from dapo_openrlhf.backend.trainer.policy import Policy
    from dapo_openrlhf.backend.trainer.rank import Rank
    from dapo_openrlhf.backend.trainer.spans import Spans

    strategy = strategy_of(model, critic, 2, offload=False)
    models = Models(strategy, device=strategy.torch_device)
    policy = PlainModel(models.language_model(model), lr=RATES["actor"], eps=EPS, max_norm=MAX_NORM)
    values = PlainModel(models.critic(critic), lr=RATES["critic"], eps=EPS, max_norm=MAX_NORM)
    reference = models.language_model(model).requires_grad_(False)
    rank = Rank(
        Policy(policy, models.packing, temperature=settings().loss.temperature, reference=reference),
        Critic(values, models.packing, clip=0.2),
        settings(),
        peers=Peers(),
        spans=Spans("plain"),
    )
    return rank, policy


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
