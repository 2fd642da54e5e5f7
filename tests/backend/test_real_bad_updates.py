"""On real DeepSpeed: a number that is not finite on one rank stops an update on all of them, and leaves no trace."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from patience import HANG_SECONDS
from safetensors.torch import load_file, save_file
from test_real_algorithms import _batch, _config, _start
from tiny_model import make_tiny_model

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.messages import GroupTokens
from dapo_openrlhf.backend.run.calls import WorkerFailed
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.publishers.ranks import Ranks
from dapo_openrlhf.types import TrainBatch

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


def poisoned(batch: TrainBatch, group: int, value: float) -> TrainBatch:
    """With one log-prob of one response of the engine's replaced, which one rank alone will see."""
    tokens: GroupTokens = ray.get(batch.groups[group].tokens)
    logprobs = tokens.rollout_logprobs.copy()
    logprobs[0] = value
    bad = dataclasses.replace(
        batch.groups[group], tokens=ray.put(dataclasses.replace(tokens, rollout_logprobs=logprobs))
    )
    return dataclasses.replace(batch, groups=(*batch.groups[:group], bad, *batch.groups[group + 1 :]))


async def checksum(ranks: list[Any]) -> int:
    copy = await Ranks(ranks, timeout=HANG_SECONDS).stage("packing")
    return copy.publication.checksum


async def stopped_by_a_gradient(trainer: Any, ranks: list[Any], batch: TrainBatch) -> dict[str, int]:
    """What is found when one rank's gradient of one parameter is infinite, and all before it is sound."""
    name = "model.layers.1.mlp.up_proj.weight"

    def poison(rank: Any) -> None:
        parameter = dict(rank.loaded.comparison._sharded.inner.named_parameters())[name]
        rank.hook = parameter.register_hook(lambda gradient: gradient * float("inf"))

    await ranks[-1].__ray_call__.remote(poison)
    outcomes: list[Any] = []
    told, trainer._on_outcomes = trainer._on_outcomes, lambda batch, of_batch: outcomes.extend(of_batch)
    await trainer.train(batch)
    trainer._on_outcomes = told
    await ranks[-1].__ray_call__.remote(lambda rank: rank.hook.remove())
    return dict(outcomes[0].not_finite)


async def with_and_without(config: Any, device: Device) -> None:
    trainer, ranks = await _start(config, device)
    outcomes: list[Any] = []
    trainer._on_outcomes = lambda batch, told: outcomes.append(told)  # as launch wires it
    await trainer.train(_batch(ranks, 0))
    before = await checksum(ranks)
    batch = _batch(ranks, 1)
    stopped = await trainer.train(poisoned(batch, 1, math.nan))
    assert await checksum(ranks) == before
    assert [outcome.bad for outcome in outcomes[1]] == [True]
    assert outcomes[1][0].not_finite["rollout log-probs"] == 1 and "loss" in outcomes[1][0].not_finite
    lr = stopped["lr"]
    assert stopped == {"updates/bad": 1.0, "updates/overflow": 0.0, "updates/empty": 0.0, "lr": lr}
    assert await stopped_by_a_gradient(trainer, ranks, batch) == {"gradient norm": len(ranks)}
    assert await checksum(ranks) == before
    # The same batch without the poison gives what it would have given had nothing happened in between.
    after = dict(await trainer.train(batch))
    assert after["lr"] == lr, "the schedule has waited"
    clean = await checksum(ranks)
    trainer, ranks = await _start(config, device)
    await trainer.train(_batch(ranks, 0))
    undisturbed = dict(await trainer.train(_batch(ranks, 1)))
    assert await checksum(ranks) == clean
    assert after == pytest.approx(undisturbed, nan_ok=False)
    assert after["updates/bad"] == 0.0 and after["grad_norm"] > 0


@pytest.mark.parametrize(("preset", "ranks", "zero_stage", "dtype"), [
    ("ppo", 2, 3, "fp32"), ("dapo", 2, 2, "bf16"), ("dapo", 1, 1, "fp32"),
])  # fmt: skip
def test_weights_critic_and_schedule_are_as_if_the_update_had_not_been(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preset: str, ranks: int, zero_stage: int, dtype: str
) -> None:
    monkeypatch.chdir(tmp_path)
    scheduled = {"actor__lr_scheduler": "cosine", "ds__param_dtype": dtype}
    config = _config(model, preset, ranks=ranks, zero_stage=zero_stage, **scheduled)
    device = Device.of("cpu", processes=2)
    with ray_cluster(config, device):
        asyncio.run(with_and_without(config, device))
    (folder,) = (tmp_path / "bad_batch").iterdir()
    assert folder.name == "step-000001-update-0"
    # The gradient's came last: the batch is the same.
    arrays = [np.load(folder / f"rank-{rank}.npz") for rank in range(ranks)]
    assert sum(len(rank["group"]) for rank in arrays) == 16
    assert not any(np.isnan(rank["rollout_logprobs"]).any() for rank in arrays)
    for rank in arrays:
        assert rank["prompt_offsets"][-1] == len(rank["prompt_ids"])
        assert rank["response_offsets"][-1] == len(rank["response_ids"]) == len(rank["logprobs"])
        assert np.isfinite(rank["logprobs"]).all()


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 2), (2, 3)])
def test_weights_that_are_not_finite_are_neither_published_nor_saved(
    model: Path, tmp_path: Path, ranks: int, zero_stage: int
) -> None:
    config = _config(model, "dapo", ranks=ranks, zero_stage=zero_stage)
    device = Device.of("cpu", processes=2)

    async def main() -> None:
        trainer, actors = await _start(config, device)
        await trainer.save(str(tmp_path / "model"))
        await trainer.snapshot(str(tmp_path / "good"))
        await trainer.write_snapshot()
        assert (tmp_path / "good").is_dir()

        def poison(rank: Any) -> None:
            """One number, under ZeRO-3 on one rank alone."""
            named = dict(rank.loaded.comparison._sharded.inner.named_parameters())
            parameter = named["model.layers.1.mlp.up_proj.weight"]
            held = parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter
            held.data.view(-1)[0] = float("inf")

        await actors[-1].__ray_call__.remote(poison)
        what = r"1 of 26 tensors hold NaN or infinity: model\.layers\.1\.mlp\.up_proj\.weight"
        with pytest.raises(Exception, match=rf"these weights are not published: {what}"):
            await checksum(actors)
        with pytest.raises(WorkerFailed, match=rf"the model is not saved to .*model: {what}"):
            await trainer.save(str(tmp_path / "model"))
        with pytest.raises(WorkerFailed, match=rf"no checkpoint is made in .*state: {what}"):
            await trainer.snapshot(str(tmp_path / "state"))
        assert not (tmp_path / "state").exists() and not (tmp_path / "model.unfinished").exists()
        assert (tmp_path / "model" / "model.safetensors").is_file()

    with ray_cluster(config, device):
        asyncio.run(main())


def test_a_model_that_is_not_finite_is_refused_at_the_start(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    config = _config(tmp_path / "broken", "dapo", ranks=1, zero_stage=2)
    device = Device.of("cpu", processes=1)
    with (
        ray_cluster(config, device),
        pytest.raises(Exception, match=r"broken cannot be trained: .*: model\.norm\.weight"),
    ):
        asyncio.run(_start(config, device))
