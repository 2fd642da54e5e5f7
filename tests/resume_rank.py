"""``python resume_rank.py RANK RANKS PORT FOLDER``: what DeepSpeed's optimizers hold after a resume."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

from leaving import leave

ALONE = tuple((stage, dtype) for stage in (1, 2, 3) for dtype in ("fp32", "bf16"))
TOGETHER = ((1, "fp32"), (2, "bf16"), (3, "bf16"))
"""ZeRO stages and data types that are tried with one rank, and with two."""
DONE = 3
"""Gradient steps before the checkpoint."""
BEFORE = {
    "adam": {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "lr_scheduler": "constant_with_warmup", "lr_warmup_ratio": 0.5, "scheduler_steps": 8, "max_norm": 1.0,
}  # fmt: skip
AFTER = {
    "adam": {"lr": 1e-5, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    "lr_scheduler": "cosine", "lr_warmup_ratio": 0.2, "scheduler_steps": 20, "max_norm": 0.25,
}  # fmt: skip
ENTERED, WARMUP = 6, 4
"""The resumed run's updates are half as large: it stands after 6 of 20, of which 4 are warm-up."""


def main(rank: str, ranks: str, port: str, folder: str) -> None:
    """Raise unless weights and moments are the checkpoint's, and everything else the configuration's."""
    os.environ.update(
        RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    for stage, dtype in ALONE if ranks == "1" else TOGETHER:
        check(stage, dtype, Path(folder) / f"{stage}-{dtype}" / f"rank-{rank}")


def prepared(stage: int, dtype: str, optimizer: dict[str, Any]) -> Any:
    """Two layers under DeepSpeed, as trainer ranks put a model there."""
    import torch

    from dapo_openrlhf.backend.device import Device
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.trainer.deepspeed_model import DeepSpeedModel
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    settings = {
        "ds.zero_stage": stage,
        "ds.param_dtype": dtype,
        "train.batch_size": int(os.environ["WORLD_SIZE"]),
        "train.seed": 0,
    }
    strategy = Strategy(openrlhf_namespace(settings), device=Device(kind="cpu", threads=1))
    strategy.setup_distributed()
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))
    return DeepSpeedModel.prepared(layers, strategy, {"optim": "adam", **optimizer})


def updated(model: Any, dtype: str) -> float:
    """One gradient step; returns the learning rate that it took."""
    import torch

    rate: float = model.learning_rate
    inputs = (
        torch.linspace(-1, 1 + model._strategy.get_rank(), 16)
        .view(2, 8)
        .to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    )
    model.backward(model._engine(inputs).float().square().sum(), last=True)
    model.step(sound=True)
    return rate


def held(model: Any) -> dict[str, Any]:
    """Copies of its full-precision weights and of both moments, by their names in the state."""
    from dapo_openrlhf.backend.trainer.state_tree import HostCopies, tensors_of

    found = dict(tensors_of(HostCopies().copy(model.state(), "state")))
    moments = [tensor for name, tensor in found.items() if name.endswith(("/exp_avg", "/exp_avg_sq"))]
    assert moments and all(moment.any() for moment in moments)
    assert any("fp32" in name for name in found)
    return found


def compare(model: Any, resumed: Any) -> None:
    """Raise unless both hold the same weights, full-precision weights and moments, to the bit."""
    import torch

    one, other = held(model), held(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for (name, part), (_, again) in zip(model.held(), resumed.held(), strict=True):
        assert torch.equal(part, again), name


def check(stage: int, dtype: str, file: Path) -> None:
    """Train, save, resume with other settings, train on; and resume with the same, as if nothing had been in between."""
    from dapo_openrlhf.backend.trainer.state_tree import HostCopies, read_tree, write_tree

    model = prepared(stage, dtype, BEFORE)
    rates = [updated(model, dtype) for _ in range(DONE)]
    assert rates == [0.0, 2e-4 * 1 / 4, 2e-4 * 2 / 4], rates
    write_tree(HostCopies().copy(model.state(), "state"), file)
    resumed = prepared(stage, dtype, AFTER)
    resumed.load_state(read_tree(file), updates_done=ENTERED)
    compare(model, resumed)
    optimizer = resumed._engine.optimizer
    adam = AFTER["adam"]
    for group, decay in zip(optimizer.param_groups, (adam["weight_decay"], 0.0), strict=True):
        assert (tuple(group["betas"]), group["eps"], group["weight_decay"]) == (adam["betas"], adam["eps"], decay)
        assert group["initial_lr"] == adam["lr"]
    assert optimizer.clip_grad == 0.25
    rates = [updated(resumed, dtype) for _ in range(20 - ENTERED)]
    cosine = [0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (20 - WARMUP))) for step in range(ENTERED, 20)]
    assert all(abs(rate - 1e-5 * share) < 1e-12 for rate, share in zip(rates, cosine, strict=True)), rates

    same = prepared(stage, dtype, BEFORE)
    same.load_state(read_tree(file), updates_done=DONE)
    assert [updated(same, dtype) for _ in range(2)] == [updated(model, dtype) for _ in range(2)]
    compare(model, same)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
