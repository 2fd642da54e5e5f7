"""``python accumulation.py PORT MODEL``: the gradient of 30 equal micro-batches in bf16 against 30 times that of one.

Prints one JSON line for each stage and data type of accumulation.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from leaving import leave

MICRO_BATCHES = 30
TOKENS = 24


def main(port: str, folder: str) -> None:
    """Print the relative error of the accumulated gradient for each combination."""
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import torch

    from dapo_openrlhf.backend.trainer.strategy import Strategy

    for stage in (2, 3):
        for dtype in ("fp32", "bf16"):
            settings = {
                "ds.zero_stage": stage,
                "ds.param_dtype": "bf16",
                "ds.attn_implementation": "sdpa",
                "ds.grad_accum_dtype": dtype,
                "train.batch_size": MICRO_BATCHES,
                "actor.adam.lr": 0.0,
                "actor.gradient_checkpointing_enable": False,
            }
            args = openrlhf_namespace(settings)
            strategy = Strategy(args, device=Device(kind="cpu", threads=1))
            strategy.setup_distributed()
            for critic in (False, True):
                error = relative_error(strategy, args, folder, critic=critic, torch=torch)
                print(json.dumps({"stage": stage, "dtype": dtype, "critic": critic, "error": error}), flush=True)


def relative_error(strategy: Any, args: Any, folder: str, *, critic: bool, torch: Any) -> float:
    """Norm of the difference between the two gradients over the norm of the second."""
    from openrlhf.models import Actor

    from dapo_openrlhf.backend.trainer.models import Models

    models = Models(strategy, device=torch.device("cpu"))
    model = models.critic(folder) if critic else Actor(models.language_model(folder))
    optimizer = {"optim": "adam", "adam": vars(args.actor.adam), "lr_scheduler": "constant", "lr_warmup_ratio": 0.0}
    prepared, *_ = strategy.prepare((model, optimizer | {"max_norm": 0.0, "scheduler_steps": 1}))
    engine = prepared if critic else prepared.model
    torch.manual_seed(0)
    sequence = torch.randint(2, 90, (1, TOKENS))
    single = gradient(engine, models, [sequence], critic, torch) * MICRO_BATCHES
    many = gradient(engine, models, [sequence] * MICRO_BATCHES, critic, torch)
    return float((many - single).norm() / single.norm())


def gradient(engine: Any, models: Any, batches: Any, critic: bool, torch: Any) -> Any:
    """The whole model's gradient after those micro-batches, flat, in float64."""
    from deepspeed.utils import safe_get_full_grad

    from dapo_openrlhf.backend.trainer.rows import make_buckets

    for position, ids in enumerate(batches):
        engine.set_gradient_accumulation_boundary(position == len(batches) - 1)
        rows = ids.shape[0]
        places = torch.arange(TOKENS).repeat(rows)[None]
        positions = torch.arange(rows * TOKENS).view(rows, TOKENS)[:, :-1].flatten()
        inputs = {
            "input_ids": ids.reshape(1, -1),
            "position_ids": places,
            "positions": positions,
            "buckets": make_buckets([TOKENS] * rows, device=torch.device("cpu")),
        }
        if critic:
            loss = (engine(**inputs) - 1.0).square().sum()
        else:
            logprobs, *_ = engine(**inputs, targets=ids[:, 1:].flatten(), temperature=1.0)
            loss = -logprobs.sum()
        engine.backward(loss / TOKENS)
    flat = torch.cat([safe_get_full_grad(p).double().flatten() for p in engine.module.parameters()])
    engine.step()
    return flat


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
