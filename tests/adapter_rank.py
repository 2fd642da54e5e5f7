"""``python adapter_rank.py RANK RANKS PORT MODEL FOLDER``: adapters under DeepSpeed.

Raises unless only adapters have optimizer states, what is published is what peft merges, nothing drifts, the reference is
the model itself, and a resumed rank goes on as if nothing had been in between.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from leaving import leave

STAGES = {1: ((2, "fp32"),), 2: ((2, "bf16"), (3, "fp32"))}
"""ZeRO's stage and the weights' type, by the number of ranks."""
RANK, ALPHA = 4, 8
UPDATES = 3


def main(rank: str, ranks: str, port: str, model: str, folder: str) -> None:
    """Try the stages for so many ranks."""
    os.environ.update(
        RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    for stage, dtype in STAGES[int(ranks)]:
        check(stage, dtype, model, Path(folder) / f"{stage}-{dtype}")


def check(stage: int, dtype: str, model: str, folder: Path) -> None:
    """Train, publish, save, resume; one after the other as a run does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from dapo_openrlhf.backend.trainer.spans import Spans
    from dapo_openrlhf.backend.trainer.stored import whole_numel

    base = AutoModelForCausalLM.from_pretrained(model, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    loaded = load(stage, dtype, model, spans=Spans("first"))
    sharded = loaded.weights._models[0]
    trained = [part for part in sharded.inner.parameters() if part.requires_grad]
    count = sum(map(whole_numel, trained))
    sides = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert count == 2 * sum(RANK * (one + other) for one, other in sides), count
    world = torch.distributed.get_world_size()
    begun = published(loaded)
    assert [name for name in begun if not torch.equal(base.state_dict()[name], begun[name])] == []
    before = reference(loaded)
    assert torch.equal(policy(loaded), before), "an adapter begins at zero"
    train(loaded, range(UPDATES))
    norm = train(loaded, [UPDATES])
    held = moments(sharded)
    assert count <= held * world <= 2 * count, (
        f"moments of the adapters alone, spread over the ranks: {held} of {count}"
    )
    assert norm > 0
    assert torch.equal(reference(loaded), before), "the reference is the model itself"
    assert (policy(loaded) - before).abs().max() > 1e-2
    now, again = published(loaded), published(loaded)
    assert all(torch.equal(now[name], again[name]) for name in now), "publishing leaves no trace"
    moved = {name for name in now if not torch.equal(now[name], begun[name])}
    assert moved == {name for name in now if "proj.weight" in name}, moved

    loaded.saving.snapshot(str(folder / "checkpoint"))
    loaded.saving.write_snapshot()
    torch.distributed.barrier()
    saved = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", dtype=base.dtype)
    assert [name for name in now if not torch.equal(saved.state_dict()[name], now[name])] == []
    merged: Any = PeftModel.from_pretrained(base.float(), folder / "checkpoint" / "adapter").merge_and_unload()
    rounding = {"fp32": 0.0, "bf16": 2**-8}[dtype]
    for name in now:
        torch.testing.assert_close(now[name].float(), merged.state_dict()[name], rtol=rounding, atol=1e-7)

    resumed = load(stage, dtype, model, spans=Spans("resumed"), checkpoint=str(folder / "checkpoint"))
    after = published(resumed)
    assert [name for name in now if not torch.equal(now[name], after[name])] == []
    assert train(loaded, [7, 8]) == train(resumed, [7, 8])
    now, after = published(loaded), published(resumed)
    assert [name for name in now if not torch.equal(now[name], after[name])] == []


def load(stage: int, dtype: str, model: str, *, spans: Any, checkpoint: str | None = None) -> Any:
    """A rank with adapters, and a KL to the model that it began with."""
    from seam_rank import settings

    from dapo_openrlhf.backend.device import Device
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.trainer.loading import load_rank
    from dapo_openrlhf.backend.trainer.step_settings import Beginning
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    names = {
        "actor.model_name_or_path": model,
        "actor.adam.lr": 1e-2,
        "actor.lr_scheduler": "constant",
        "actor.lr_warmup_ratio": 0.0,
        "actor.max_norm": 1.0,
        "actor.gradient_checkpointing_enable": True,
        "ds.zero_stage": stage,
        "ds.param_dtype": dtype,
        "ds.grad_accum_dtype": "fp32",
        "ds.attn_implementation": "sdpa",
        "ds.lora.rank": RANK,
        "ds.lora.alpha": ALPHA,
        "ds.lora.target_modules": ("all-linear",),
        "train.batch_size": 8,
    }
    strategy = Strategy(openrlhf_namespace(names), device=Device(kind="cpu", threads=1))
    strategy.setup_distributed()
    done = UPDATES + 1 if checkpoint else 0
    beginning = Beginning(total_updates=20, updates_done=done, first_step=done, checkpoint=checkpoint, reference=model)
    return load_rank(strategy, settings(critic=False), beginning, spans=spans)


def batch(step: int) -> Any:
    """Responses of random tokens: the same on every rank."""
    from plain_model import random_batch
    from tiny_model import CHARACTERS

    return random_batch(step, groups=2, responses=4, longest=12, vocabulary=len(CHARACTERS), first_token=2)


def train(loaded: Any, steps: Any) -> float:
    """Train rollout steps of one update each; returns the last gradient norm."""
    from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch

    norm = 0.0
    for step in steps:
        groups, tokens = batch(step)
        plan = PlanSettings(
            train_batch_size=8, max_epochs=1, max_tokens=64, overlong_filtering=False, seed=0,
            estimator="reinforce", loss_agg_mode="token-mean", longest_response=12,
        )  # fmt: skip
        import torch

        cut = plan_batch(groups, plan, ranks=torch.distributed.get_world_size())[torch.distributed.get_rank()]
        report = loaded.rank.train(cut, tokens)
        assert all(outcome.not_finite == {} for outcome in report.outcomes)
        norm = report.values["grad_norm"]
    return norm


def published(loaded: Any) -> dict[str, Any]:
    """Copies of what is published."""
    return {name: tensor.clone() for name, tensor in loaded.weights._whole.tensors()}


def policy(loaded: Any) -> Any:
    """Log-probs of a batch."""
    return scores(loaded, loaded.rank._policy.logprobs)


def reference(loaded: Any) -> Any:
    """The reference's log-probs of the same batch."""
    return scores(loaded, loaded.rank._policy.ref_logprobs)


def scores(loaded: Any, forward: Any) -> Any:
    """What ``forward`` gives for one batch."""
    import torch

    from dapo_openrlhf.backend.trainer.collate import collate
    from dapo_openrlhf.pipeline.batch import Sample

    _, tokens = batch(99)
    samples = tuple(
        Sample(group=group, index=0, prompt_length=3, length=1, advantage=0.0, trained=True) for group in tokens
    )
    with torch.no_grad():
        return forward(collate(samples, tokens, device=torch.device("cpu"))).clone()


def moments(sharded: Any) -> int:
    """Number of first moments that this rank holds, once they are there."""
    from dapo_openrlhf.backend.trainer.state_tree import tensors_of

    return sum(part.numel() for name, part in tensors_of(sharded.state()) if name.endswith("/exp_avg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
