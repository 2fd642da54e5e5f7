"""One rank of two: ``python zero_ranks.py RANK STAGE PORT`` checks ``whole_parameters`` on a small model."""

from __future__ import annotations

import os
import sys


def main(rank: str, stage: str, port: str) -> None:
    """Raise unless whole parameters come in order, for any bucket, and stay while they are held."""
    os.environ.update(
        RANK=rank, WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, DS_ACCELERATOR="cpu"
    )
    import deepspeed
    import torch

    from dapo_openrlhf.backend.parameters import whole_numel, whole_parameters, whole_shape

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 5, bias=False), torch.nn.Linear(5, 3))
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": int(stage)}, "optimizer": optimizer}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    assert [whole_shape(p) for p in engine.module.parameters()] == [tuple(t.shape) for t in expected.values()]
    assert [whole_numel(p) for p in engine.module.parameters()] == [t.numel() for t in expected.values()]
    for bucket_bytes in (1 << 20, 600, 1):
        held = list(whole_parameters(engine.module, bucket_bytes=bucket_bytes))
        assert [name for name, _ in held] == list(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in held)
    partitioned = any(hasattr(parameter, "ds_id") for parameter in engine.module.parameters())
    assert partitioned == (stage == "3"), "gathering leaves parameters as they were"


if __name__ == "__main__":
    main(*sys.argv[1:])
