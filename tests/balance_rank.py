"""``python balance_rank.py RANK RANKS PORT MODEL``: experts balanced under DeepSpeed on several ranks, and by plain torch on one.

With gradient checkpointing, in ZeRO-2 and ZeRO-3, of the whole model and of adapters.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from leaving import leave

CASES = ((2, 0), (3, 0), (3, 4))
"""ZeRO's stage, and the rank of the adapters; 0 for none."""
COEFFICIENT, RATE, EPS = 2.0, 1e-3, 1e-4
STEPS = 2


def main(rank: str, ranks: str, port: str, model: str) -> None:
    """Raise unless the loss, the gradient's norm and the updated weights are those of plain torch."""
    os.environ.update(
        RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import torch

    torch.set_num_threads(1)
    for stage, adapters in CASES:
        check(model, stage, adapters)


def check(model: str, stage: int, adapters: int) -> None:
    """Train the same batches both ways."""
    import pytest
    import torch

    from dapo_openrlhf.backend.trainer.loading import load_rank
    from dapo_openrlhf.backend.trainer.spans import Spans
    from dapo_openrlhf.backend.trainer.step_settings import Beginning
    from dapo_openrlhf.pipeline.batch import RankPlan

    strategy = strategy_of(model, stage, adapters)
    strategy.setup_distributed()
    beginning = Beginning(total_updates=9, updates_done=0, first_step=0, checkpoint=None, reference=None)
    loaded = load_rank(strategy, settings(), beginning, spans=Spans("DeepSpeed"))
    large = [part for part in loaded.weights._models[0].inner.parameters() if getattr(part, "ds_numel", 0) > 1e5]
    assert bool(large) == (stage == 3), "smaller ones are never partitioned"
    rank, plain = plain_rank(model, adapters)
    before = {name: part.clone() for name, part in plain.held()}
    for step in range(STEPS):
        plans, tokens = cut(step)
        merged = dataclasses.replace(
            plans[0].updates[0], micro_batches=tuple(m for p in plans for m in p.updates[0].micro_batches)
        )
        expected = rank.train(RankPlan(updates=(merged,), step=step), tokens)
        found = loaded.rank.train(plans[torch.distributed.get_rank()], tokens)
        share = torch.tensor(found.sums["aux_loss"])
        torch.distributed.all_reduce(share)
        assert share.item() == pytest.approx(expected.sums["aux_loss"], rel=1e-4)
        assert share.item() > 0.5
        assert found.values["grad_norm"] == pytest.approx(expected.values["grad_norm"], rel=1e-3)
    moved = {name for name, part in plain.held() if not torch.equal(part, before[name])}
    assert any("mlp.gate.weight" in name for name in moved) == (adapters == 0)
    # What is published has the adapters in it, and the plain model's are added in the same way.
    from dapo_openrlhf.backend.trainer.parameters import Published

    now = dict(Published(plain.inner).tensors())
    for name, tensor in loaded.weights._whole.tensors():
        apart = (tensor - now[name]).abs().max().item()
        assert apart < 2e-5, (name, apart)


def settings() -> Any:
    """A policy loss, and one of the experts that is not small."""
    from seam_rank import settings as ppo

    base = ppo(critic=False)
    return dataclasses.replace(
        base,
        loss=dataclasses.replace(base.loss, aux_loss_coef=COEFFICIENT),
        advantages=dataclasses.replace(base.advantages, whitened=False, kl_coef=0.0),
    )


def strategy_of(model: str, stage: int, adapters: int) -> Any:
    """As the configuration would make it."""
    from dapo_openrlhf.backend.device import Device
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    names = {
        "actor.model_name_or_path": model,
        "actor.adam.lr": RATE,
        "actor.adam.eps": EPS,
        "actor.adam.betas": (0.9, 0.999),
        "actor.adam.weight_decay": 0.0,
        "actor.lr_scheduler": "constant",
        "actor.lr_warmup_ratio": 0.0,
        "actor.max_norm": 0.0,
        "actor.gradient_checkpointing_enable": True,
        "ds.zero_stage": stage,
        "ds.param_dtype": "fp32",
        "ds.attn_implementation": "sdpa",
        "ds.lora.rank": adapters,
        "ds.lora.target_modules": ("all-linear",),
        "train.batch_size": 8,
    }
    return Strategy(openrlhf_namespace(names), device=Device(kind="cpu", threads=1))


def plain_rank(model: str, adapters: int) -> tuple[Any, Any]:
    """A rank alone with a plain model, and that model."""
    from plain_model import PlainModel

    from dapo_openrlhf.backend.trainer.models import Models
    from dapo_openrlhf.backend.trainer.peers import Peers
    from dapo_openrlhf.backend.trainer.policy import Policy, Wanted
    from dapo_openrlhf.backend.trainer.rank import Rank
    from dapo_openrlhf.backend.trainer.spans import Spans

    strategy = strategy_of(model, 2, adapters)
    models = Models(strategy, device=strategy.torch_device)
    plain = PlainModel(models.language_model(model), lr=RATE, eps=EPS)
    temperature = settings().loss.temperature
    policy = Policy(plain, models.packing, temperature=temperature, reference=None, wanted=Wanted(balance=True))
    return Rank(policy, None, settings(), peers=Peers(), spans=Spans("plain")), plain


def cut(step: int) -> Any:
    """A step of one update, cut for every rank, and its tokens."""
    import torch
    from plain_model import random_batch

    from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch

    batch, tokens = random_batch(step, groups=2, responses=4, longest=12, vocabulary=48, first_token=3)
    plan = PlanSettings(
        train_batch_size=8, max_epochs=1, max_tokens=24, overlong_filtering=False, seed=0, estimator="reinforce",
        loss_agg_mode="token-mean", longest_response=12,
    )  # fmt: skip
    return plan_batch(batch, plan, ranks=torch.distributed.get_world_size()), tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
