"""On real Ray, vLLM and DeepSpeed: after a publication engine and trainer are the same policy."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from patience import HANG_SECONDS
from tiny_model import CHARACTERS, make_tiny_model

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.messages import Agreement, GroupTokens
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.publishers.broadcast import BroadcastPublisher
from dapo_openrlhf.backend.run.publishers.opening import open_publisher
from dapo_openrlhf.backend.run.remote_trainer import RemoteTrainer
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.backend.run.train_settings import plan_settings
from dapo_openrlhf.backend.run.workers import Workers, start_workers
from dapo_openrlhf.bench.gpu_check.agreement import batch_of_one
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt

pytestmark = pytest.mark.real

TOLERANCE = 1e-3
PROMPT = Prompt(id=0, text="12+34=", token_ids=tuple(map(CHARACTERS.index, "12+34=")), label="46")
SAMPLING = Sampling(n=8, max_new_tokens=16, temperature=0.8, top_p=1.0)


def _config(
    model: Path, prompts: Path, *, ranks: int, zero_stage: int, transport: str, workers: int, data_type: str
) -> Config:
    prompts.write_text(json.dumps({"input": PROMPT.text, "label": PROMPT.label}) + "\n")
    return build_config(
        {
            "device": "cpu",
            "actor": {
                "model_name_or_path": str(model),
                "num_gpus_per_node": ranks,
                "adam": {"lr": 1e-2},
                "lr_warmup_steps": 0,
            },
            "vllm": {"sync_backend": transport, "tensor_parallel_size": workers},
            "ds": {"zero_stage": zero_stage, "param_dtype": data_type, "attn_implementation": "sdpa"},
            "rollout": {
                "batch_size": 1,
                "n_samples_per_prompt": SAMPLING.n,
                "max_new_tokens": SAMPLING.max_new_tokens,
                "temperature": SAMPLING.temperature,
            },
            "train": {"batch_size": 4, "max_steps": 3, "max_tokens_per_gpu": 64},
            "data": {"prompt_dataset": str(prompts), "max_len": 64},
        },
        source="test",
    )


async def _largest_difference(workers: Workers, generation: Generation) -> float:
    """Between the engine's log-probs of what it sampled and the trainer's of the same tokens."""
    tokens: GroupTokens = await generation.tokens  # type: ignore[misc]
    assert len(tokens.offsets) == SAMPLING.n + 1
    assert (np.diff(tokens.offsets) > 0).all()
    # Every rank must be asked: a forward pass is a collective under ZeRO-3.
    found: list[Agreement] = await asyncio.gather(*(_compared(rank, tokens) for rank in workers.ranks))
    (difference,) = found[0].engines
    assert math.isfinite(difference.largest), "a comparison with nan would hold"
    return difference.largest


async def _compared(rank: Any, tokens: GroupTokens) -> Agreement:
    compared: Agreement = await rank.compare.remote([[tokens]])
    return compared


SERIAL = itertools.count()


async def _train_publish_compare(config: Config, device: Device) -> tuple[list[float], float]:
    """Differences before and after each publication, and how far the last training step moved the policy."""
    workers = await start_workers(
        config, Inputs(device=device, prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=()))
    )
    # Ranks deal samples anew in the second pass.
    plan = replace(plan_settings(config), max_epochs=2, overlong_filtering=False, seed=0)
    trainer = RemoteTrainer(workers.ranks, plan, timeout=HANG_SECONDS)
    publisher = await open_publisher(config, workers, on_spans=lambda spans: None)
    engine = workers.engines[0]
    generation = await engine.generate(f"request {next(SERIAL)}", PROMPT, SAMPLING)
    differences = [await _largest_difference(workers, generation)]
    moved = 0.0

    async def step(version: int, lost: bool = False) -> None:
        nonlocal generation, moved
        assert generation.oldest_version == generation.newest_version == version - 1
        await trainer.train(batch_of_one(PROMPT, generation, step=version - 1))
        moved = await _largest_difference(workers, generation)
        if lost:
            ray.kill(engine.actor)
        await publisher.deliver(await publisher.send(PolicyVersion(version)))
        if lost:
            await publisher.revive(0)
        generation = await engine.generate(f"request {next(SERIAL)}", PROMPT, SAMPLING)
        differences.append(await _largest_difference(workers, generation))

    await step(1)
    await step(2)
    if isinstance(publisher, BroadcastPublisher):
        if config.vllm.tensor_parallel_size > 1:  # the way that always works, into workers that are other processes
            copy = await publisher._ranks.stage("packing")
            await publisher._engines.load_all(copy.named(PolicyVersion(3)))
            generation = await engine.generate(f"request {next(SERIAL)}", PROMPT, SAMPLING)
            assert (copy.publication.version, generation.oldest_version) == (2, 3)
            differences.append(await _largest_difference(workers, generation))
        else:
            await step(3, lost=True)  # the only engine: nobody is left to take part in the broadcast
            await step(4)  # in a group that is formed anew, with the new engine
    return differences, moved


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "tied", "transport", "workers", "data_type"),
    [
        (1, 2, True, "object_store", 1, "fp32"),
        (1, 1, False, "object_store", 1, "fp32"),
        (2, 3, True, "object_store", 1, "fp32"),
        (2, 2, False, "gloo", 1, "fp32"),
        (2, 3, True, "gloo", 1, "fp32"),
        (1, 2, False, "gloo", 2, "fp32"),
    ],
)
def test_engine_and_trainer_agree_after_each_publication(
    tmp_path: Path, ranks: int, zero_stage: int, tied: bool, transport: str, workers: int, data_type: str
) -> None:
    model = make_tiny_model(tmp_path / "model", tied=tied)
    how = {"ranks": ranks, "zero_stage": zero_stage, "transport": transport, "workers": workers}
    config = _config(model, tmp_path / "prompts.jsonl", **how, data_type=data_type)  # type: ignore[arg-type]
    device = Device.of("cpu", processes=ranks + workers)
    with ray_cluster(config, device):
        differences, moved = asyncio.run(_train_publish_compare(config, device))
    assert moved > 10 * TOLERANCE, "training must move the policy, or agreement would say nothing"
    assert max(differences) < TOLERANCE
