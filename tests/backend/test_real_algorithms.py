"""On real Ray and DeepSpeed: what each algorithm's trainer ranks do in their steps, and one run with an engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from patience import HANG_SECONDS
from safetensors.torch import load_file, save_file
from tiny_model import make_tiny_model

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.remote_trainer import RemoteTrainer
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.backend.run.train_settings import plan_settings
from dapo_openrlhf.backend.run.workers import start_rank
from dapo_openrlhf.backend.trainer.actor import rank_actor
from dapo_openrlhf.config.loading import build_config, dump_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup, TrainBatch

pytestmark = pytest.mark.real

PROMPTS, RESPONSES, LONGEST = 4, 4, 12


def _config(model: Path, preset: str, *, ranks: int, zero_stage: int, updates: int = 1, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "preset": preset,
        "device": "cpu",
        "actor": {
            "model_name_or_path": str(model), "num_gpus_per_node": ranks, "adam": {"lr": 1e-3}, "lr_warmup_steps": 0,
        },
        "critic": {"adam": {"lr": 1e-2}, "value_clip": None},
        "ds": {"zero_stage": zero_stage, "param_dtype": "fp32", "attn_implementation": "sdpa"},
        "rollout": {"batch_size": PROMPTS, "n_samples_per_prompt": RESPONSES, "max_new_tokens": LONGEST},
        "train": {"batch_size": PROMPTS * RESPONSES // updates, "max_steps": 8, "max_tokens_per_gpu": 64},
        "data": {"prompt_dataset": "none.jsonl", "max_len": 32},
    }  # fmt: skip
    for name, value in changes.items():
        section, key = name.split("__")
        settings.setdefault(section, {})[key] = value
    return build_config(settings, source="test")


async def _start(config: Config, device: Device) -> tuple[RemoteTrainer, list[Any]]:
    inputs = Inputs(device=device, prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=()))
    size = config.trainer_ranks
    rank_class = rank_actor().options(runtime_env=device.runtime_env())
    ranks = [rank_class.remote(size, 0, None, None)]
    if size > 1:
        address, port = await ranks[0].get_master_addr_port.remote()
        ranks += [rank_class.remote(size, rank, address, port) for rank in range(1, size)]
    await asyncio.gather(*(start_rank(rank, config, inputs) for rank in ranks))
    trainer = RemoteTrainer(ranks, replace(plan_settings(config), seed=0), timeout=HANG_SECONDS)
    return trainer, ranks


def _scored(ranks: list[Any], sequences: list[Any]) -> Any:
    """Log-probs of all tokens but the first of each, by the weights as they are."""

    def score(rank: Any) -> Any:
        return rank.loaded.comparison.packed(sequences)

    # Every rank must be asked: a forward pass is a collective under ZeRO-3.
    return ray.get([rank.__ray_call__.remote(score) for rank in ranks])[0]


def _batch(ranks: list[Any], step: int) -> TrainBatch:
    """Responses of random tokens, with the log-probs of the weights that will train on them."""
    dice = np.random.default_rng(0)
    groups = []
    for position in range(PROMPTS):
        prompt_ids = dice.integers(2, 90, 3).astype(np.int32)
        lengths = dice.integers(2, LONGEST, RESPONSES)
        offsets = np.concatenate([[0], lengths.cumsum()])
        response_ids = dice.integers(2, 90, offsets[-1]).astype(np.int32)
        sequences = [
            np.concatenate([prompt_ids, response_ids[start:end]]) for start, end in itertools.pairwise(offsets)
        ]
        logprobs = [row[-length:] for row, length in zip(_scored(ranks, sequences), lengths, strict=True)]
        tokens = GroupTokens(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            rollout_logprobs=np.concatenate(logprobs),
            offsets=offsets,
        )
        rollouts = tuple(
            Rollout(
                length=int(length),
                truncated=False,
                cut=False,
                correct=bool(length % 2),
                reward=1.0 if length % 2 else -1.0,
            )
            for length in lengths
        )
        groups.append(
            RolloutGroup(
                id=position,
                prompt=Prompt(id=position, text="", label=""),
                prompt_length=3,
                rollouts=rollouts,
                oldest_version=PolicyVersion(step),
                newest_version=PolicyVersion(step),
                engine=0,
                tokens=ray.put(tokens),
            )
        )
    return TrainBatch(step=step, version=PolicyVersion(step), groups=tuple(groups))


async def _steps(config: Config, device: Device, count: int) -> list[dict[str, float]]:
    trainer, ranks = await _start(config, device)
    statistics = []
    for step in range(count):
        statistics.append(dict(await trainer.train(_batch(ranks, step))))
    return statistics


def _run(config: Config, count: int) -> list[dict[str, float]]:
    device = Device.of("cpu", processes=config.trainer_ranks)
    with ray_cluster(config, device):
        steps = asyncio.run(_steps(config, device, count))
    assert all(math.isfinite(value) for step in steps for value in step.values())
    return steps


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def test_ppo_is_the_same_on_two_ranks_with_partitioned_models_and_learns_values(model: Path) -> None:
    """Whitening, both losses and all collectives: ZeRO-3 on two ranks against one rank alone; two passes of two
    updates, for which ranks deal samples anew."""
    changes = {"updates": 2, "train__max_epochs": 2}
    alone = _run(_config(model, "ppo", ranks=1, zero_stage=2, **changes), 4)
    ranks = _run(_config(model, "ppo", ranks=2, zero_stage=3, **changes), 2)
    for one, two in zip(alone, ranks, strict=False):
        for name in ("loss", "ratio", "kl", "value_loss", "explained_variance", "entropy", "critic_grad_norm"):
            assert two[name] == pytest.approx(one[name], abs=1e-4), name
    assert abs(alone[0]["value"]) < 0.5
    assert alone[-1]["value_loss"] < 0.5 * alone[0]["value_loss"]
    assert alone[-1]["explained_variance"] > alone[0]["explained_variance"] + 0.3


def test_grpo_has_its_kl_in_the_loss(model: Path) -> None:
    first, second = _run(_config(model, "grpo", ranks=1, zero_stage=2), 2)
    assert first["ratio"] == second["ratio"] == 1.0
    assert abs(first["kl"]) < 1e-6
    assert second["kl"] > 1e-4
    assert "value_loss" not in first
    # Group-normalised advantages and a mean per response: at ratio 1 and without KL the loss is minus their mean, 0.
    assert abs(first["loss"]) < 1e-5
    assert second["loss"] == pytest.approx(0.04 * second["kl"], rel=0.5)


def test_gspo_and_leave_one_out_with_constant_aggregation(model: Path) -> None:
    config = _config(
        model, "dapo", ranks=1, zero_stage=2, updates=2,
        actor__policy_loss_type="gspo", actor__loss_agg_mode="seq-mean-token-sum-norm",
        algo__advantage={"estimator": "rloo", "is_correction_level": "off"},
    )  # fmt: skip
    first, second = _run(config, 2)
    assert "kl" not in first and "value_loss" not in first
    assert first["ratio"] != 1.0  # the second of two updates
    assert first["ratio"] == pytest.approx(1.0, abs=0.2)
    assert second["grad_norm"] > 0


def _train(*arguments: str) -> None:
    command = [sys.executable, "-m", "dapo_openrlhf", "train", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def test_a_whole_ppo_run_on_single_responses_and_its_resumption(model: Path, tmp_path: Path) -> None:
    """Through engine, filter, queue and publication. The critic starts from a head of zeros, and is kept."""
    critic = tmp_path / "critic"
    shutil.copytree(model, critic)
    weights = load_file(critic / "model.safetensors")
    hidden_size = weights["model.norm.weight"].shape[0]
    save_file(weights | {"score.weight": torch.zeros(1, hidden_size)}, critic / "model.safetensors", {"format": "pt"})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"input": f"{n}+1=", "label": str(n + 1)}) + "\n" for n in range(8)))
    changes = {
        "data__prompt_dataset": str(prompts), "run__dir": str(tmp_path), "train__max_steps": 2, "ckpt__save_steps": 2,
        "critic__model_name_or_path": str(critic), "critic__save_value_network": True,
        "rollout__n_samples_per_prompt": 1, "train__batch_size": PROMPTS,
    }  # fmt: skip
    file = tmp_path / "ppo.yaml"
    file.write_text(dump_config(_config(model, "ppo", ranks=1, zero_stage=2, **changes)))
    run = tmp_path / "dapo"
    _train("--config", str(file))
    assert load_file(run / "checkpoint" / "critic" / "model.safetensors")["score.weight"].any()
    _train("--resume", str(run), "train.max_steps=3")
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    first, second, third = [event["statistics"] for event in events if event["event"] == "step_trained"]
    assert first["ratio"] == third["ratio"] == 1.0
    assert abs(first["kl"]) < 1e-6
    assert first["value"] == 0.0
    assert second["value"] != 0.0
    # After the resumption the reference is the first model still, and the critic is the one that was trained.
    assert abs(third["kl"]) > 1e-5
    assert third["value"] != 0.0
