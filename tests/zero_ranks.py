"""One rank of two: ``python zero_ranks.py RANK STAGE PORT MODEL`` checks what is published of a model in that folder."""

from __future__ import annotations

import os
import sys

from leaving import leave

LOADS = 3
GATHERINGS = 20
"""Of all parameters at once: one that is read before it has arrived does not show every time."""


def main(rank: str, stage: str, port: str, folder: str) -> None:
    """Raise unless whole tensors are those of the file, for any bucket, and stay while they are held."""
    os.environ.update(
        RANK=rank, WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import torch
    from openrlhf.models import Actor
    from safetensors.torch import load_file

    from dapo_openrlhf.backend.trainer.models import Models
    from dapo_openrlhf.backend.trainer.parameters import Published
    from dapo_openrlhf.backend.trainer.stored import whole_numel
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    settings = {"ds.zero_stage": int(stage), "ds.param_dtype": "fp32", "ds.attn_implementation": "sdpa"}
    args = openrlhf_namespace(settings | {"train.batch_size": 2, "actor.gradient_checkpointing_enable": False})
    strategy = Strategy(args, device=Device(kind="cpu", threads=1))
    strategy.setup_distributed()
    expected = load_file(os.path.join(folder, "model.safetensors"))
    for _ in range(LOADS):
        optimizer = {"optim": "adam", "adam": vars(args.actor.adam), "lr_scheduler": "constant", "lr_warmup_ratio": 0.0}
        model = Actor(Models(strategy, device=torch.device("cpu")).language_model(folder))
        actor, *_ = strategy.prepare((model, optimizer | {"max_norm": 1.0, "scheduler_steps": 1}))
        module = actor.model.module
        published = Published(module)
        names = published.layout.names
        assert set(names) == set(expected)
        assert published.layout.shapes == tuple(tuple(expected[name].shape) for name in names)
        assert sum(map(whole_numel, module.parameters())) == sum(tensor.numel() for tensor in expected.values())
        for bucket_bytes in (*[1 << 30] * GATHERINGS, 5000, 1):
            held = list(published.tensors(bucket_bytes=bucket_bytes))
            assert tuple(name for name, _ in held) == names
            assert [name for name, tensor in held if not torch.equal(tensor, expected[name])] == []
        partitioned = any(hasattr(parameter, "ds_id") for parameter in module.parameters())
        assert partitioned == (stage == "3"), "gathering leaves parameters as they were"


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
