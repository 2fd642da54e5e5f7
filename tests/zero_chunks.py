"""One rank of two: ``python zero_chunks.py RANK PORT MODEL CHECKPOINTING`` trains on other numbers of tokens than the other."""

from __future__ import annotations

import os
import sys

from leaving import leave

ROWS = 8
"""Of a chunk of logits."""
LENGTHS = {"0": (20, 44, 30), "1": (44, 20, 7)}
"""Response tokens of each pass, by rank."""


def main(rank: str, port: str, folder: str, checkpointing: str) -> None:
    """Raise unless passes without and with gradient, and the comparison with the model's own forward, come through."""
    os.environ.update(
        RANK=rank,
        WORLD_SIZE="2",
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        DS_ACCELERATOR="cpu",
        TORCHDYNAMO_DISABLE="1",
    )
    from datetime import timedelta

    from dapo_openrlhf.backend.device import Device, stand_in_for_cuda
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    stand_in_for_cuda()
    import_openrlhf_lightly()
    import numpy as np
    import torch

    from dapo_openrlhf.backend.messages import GroupTokens, one_version
    from dapo_openrlhf.backend.run import start_check
    from dapo_openrlhf.backend.trainer import logprobs
    from dapo_openrlhf.backend.trainer.agreement import Comparison
    from dapo_openrlhf.backend.trainer.deepspeed_model import DeepSpeedModel
    from dapo_openrlhf.backend.trainer.models import Models
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    torch.set_num_threads(1)
    settings = {"ds.zero_stage": 3, "ds.param_dtype": "fp32", "ds.attn_implementation": "sdpa", "train.batch_size": 2}
    args = openrlhf_namespace(settings | {"actor.gradient_checkpointing_enable": checkpointing == "True"})
    strategy = Strategy(args, device=Device(kind="cpu", threads=1))
    strategy.setup_distributed(timeout=timedelta(seconds=60))
    models = Models(strategy, device=torch.device("cpu"))
    model = models.language_model(folder)
    vocabulary = model.config.vocab_size
    assert model.lm_head.weight.ds_numel > 1e5, "smaller parameters are never partitioned"
    logprobs.LOGITS_PER_CHUNK = ROWS * vocabulary
    optimizer = {"optim": "adam", "adam": vars(args.actor.adam), "lr_scheduler": "constant", "lr_warmup_ratio": 0.0}
    sharded = DeepSpeedModel.prepared(model, strategy, optimizer | {"max_norm": 1.0, "scheduler_steps": 1})
    comparison = Comparison(sharded, models.packing, temperature=1.0)
    dice = np.random.default_rng(int(rank))
    sequences = [dice.integers(3, vocabulary, 1 + length).astype(np.int32) for length in LENGTHS[rank]]
    for sequence in sequences:
        comparison.packed([sequence])
    for position, sequence in enumerate(sequences):
        batch = comparison._batch([sequence])
        found, *_ = sharded(**models.packing.inputs(batch), targets=batch.targets, temperature=1.0)
        sharded.backward(-found.mean() / 2, last=position == len(sequences) - 1)
    sharded.step(sound=True)
    group = GroupTokens(
        prompt_ids=sequences[0][:5],
        response_ids=sequences[0][5:],
        rollout_logprobs=np.zeros(len(sequences[0]) - 5, np.float32),
        offsets=np.asarray([0, len(sequences[0]) - 5]),
        versions=one_version(0, len(sequences[0]) - 5),
    )
    found_agreement = comparison.agreement([[group]])
    assert found_agreement.packed.largest < 1e-4, found_agreement
    assert start_check.tolerable(found_agreement, found_agreement.packed)
    assert "what follows the last layer" in comparison.where_packed_differs([group])


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
