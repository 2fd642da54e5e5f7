"""Who shares a machine or a GPU with whom, and what is refused before a cluster is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.needs import LEAST_OBJECT_STORE, check_devices, check_sampling, object_store_bytes
from dapo_openrlhf.backend.run.placement import Layout, check_fit, together
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config


def config(*, nodes: int = 1, per_node: int = 1, engines: int = 1, workers: int = 1, shared: bool = False) -> Config:
    settings: dict[str, Any] = {
        "actor": {"model_name_or_path": "m", "num_nodes": nodes, "num_gpus_per_node": per_node},
        "vllm": {"num_engines": engines, "tensor_parallel_size": workers, "gpu_memory_utilization": 0.5},
        "rollout": {"batch_size": 480},
        "train": {"batch_size": 480, "colocate_all": shared},
        "data": {"prompt_dataset": "p.jsonl"},
    }
    return build_config(settings, source="test")


def test_ranks_of_a_node_and_an_engines_workers_are_a_bundle_each() -> None:
    layout = Layout.of(config(nodes=2, per_node=4, engines=2, workers=2))
    assert layout.bundles == (4, 4, 2, 2)
    assert layout.ranks == (0, 0, 0, 0, 1, 1, 1, 1)
    assert layout.engines == (2, 3)
    assert layout.resources() == [{"GPU": 4, "CPU": 4}] * 2 + [{"GPU": 2, "CPU": 1}] * 2
    assert (layout.gpus_per_rank, layout.gpus_per_engine) == (1, 2)


def test_shared_gpus_are_a_bundle_each_with_half_for_either() -> None:
    layout = Layout.of(config(per_node=2, engines=2, shared=True))
    assert layout.bundles == (1, 1)
    assert layout.ranks == layout.engines == (0, 1)
    assert layout.resources() == [{"GPU": 1, "CPU": 2}] * 2
    assert layout.gpus_per_rank + layout.gpus_per_engine == 1


def test_evaluation_places_engines_only() -> None:
    assert Layout.of(config(per_node=4, engines=2), training=False).bundles == (1, 1)


@pytest.mark.parametrize(
    ("asked", "machines"),
    [
        ({"nodes": 1, "per_node": 4, "engines": 4}, [8.0]),
        ({"nodes": 2, "per_node": 4, "engines": 8}, [8.0, 8.0]),
        ({"nodes": 1, "per_node": 6, "engines": 2, "workers": 4}, [8.0, 8.0]),
        ({"nodes": 1, "per_node": 2, "engines": 3, "workers": 2}, [4.0, 4.0]),
        ({"per_node": 1, "engines": 1, "shared": True}, [1.0]),
    ],
)
def test_what_fits(asked: dict[str, Any], machines: list[float]) -> None:
    wanted = config(**asked)
    check_fit(wanted, Layout.of(wanted), machines)


@pytest.mark.parametrize(
    ("asked", "machines", "words"),
    [
        ({"workers": 8}, [4.0, 4.0], "vllm.tensor_parallel_size: 8 GPUs of one machine .* use at most 4"),
        ({"per_node": 8}, [4.0, 4.0], "actor.num_gpus_per_node: 8 GPUs of one machine .* use at most 4"),
        ({"per_node": 6, "engines": 3, "workers": 3}, [8.0, 8.0], "do not fit into 2"),  # 15 of 16, but cut badly
        ({"per_node": 1}, [], "the cluster has 0 machine"),
        ({"per_node": 1, "engines": 1}, [1.0], "do not fit into 1 machine"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(asked: dict[str, Any], machines: list[float], words: str) -> None:
    wanted = config(**asked)
    with pytest.raises(ConfigError, match=words):
        check_fit(wanted, Layout.of(wanted), machines)


def test_neighbouring_ranks_get_bundles_of_one_machine() -> None:
    machine_of = {0: "x", 1: "y", 2: "x", 3: "y"}
    order = together(machine_of, [1, 1, 1, 1])
    assert [machine_of[bundle] for bundle in order] == ["x", "x", "y", "y"]


def test_a_bundle_is_only_exchanged_for_one_of_its_size() -> None:
    sizes = [4, 1, 4, 1]
    order = together({0: "x", 1: "y", 2: "y", 3: "x"}, sizes)
    assert sorted(order) == [0, 1, 2, 3]
    assert [sizes[bundle] for bundle in order] == sizes


def test_a_shared_gpu_is_counted_once() -> None:
    cuda = Device(kind="cuda", threads=1)
    shared = config(per_node=2, engines=2, shared=True)
    check_devices(shared, cuda, 2, "this machine")
    with pytest.raises(ConfigError, match=r"with train.colocate_all, .* = 2 GPUs, but this machine has 1"):
        check_devices(shared, cuda, 1, "this machine")
    with pytest.raises(
        ConfigError, match=r"vllm.num_engines 2 .* = 4 GPUs, but this machine has 3;.* or let them share"
    ):
        check_devices(config(per_node=2, engines=2), cuda, 3, "this machine")


def test_shared_memory_is_sized_by_what_the_run_puts_into_it(tmp_path: Path) -> None:
    """2 x (1 + 1) x 64 groups of 8 responses of 1,000 tokens of 24 bytes, and two versions of weights of 2 x 100 MB."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    os.truncate(tmp_path / "model.safetensors", 100_000_000)
    settings: dict[str, Any] = {
        "actor": {"model_name_or_path": str(tmp_path)},
        "rollout": {"batch_size": 64, "n_samples_per_prompt": 8, "max_new_tokens": 500},
        "train": {"batch_size": 512},
        "async": {"max_staleness": 1},
        "data": {"prompt_dataset": "p.jsonl", "max_len": 1000},
    }
    run = build_config(settings, source="test")
    wanted = 2 * 2 * 64 * 8 * 1000 * 24 + 2 * 2 * 100_000_000
    assert wanted < LEAST_OBJECT_STORE == object_store_bytes(run, memory=1 << 40)
    os.truncate(tmp_path / "model.safetensors", 1_000_000_000)
    wanted += 2 * 2 * 900_000_000
    assert object_store_bytes(run, memory=1 << 40) == wanted
    assert object_store_bytes(run, memory=4_000_000_000) == 1_000_000_000
    for cut, sets in (({"top_k": 20, "top_p": 0.7}, 20), ({"top_p": 0.7}, 64)):
        run = build_config(settings | {"rollout": settings["rollout"] | cut}, source="test")
        assert object_store_bytes(run, memory=1 << 40) == wanted + 2 * 2 * 64 * 8 * 1000 * 4 * sets


@pytest.mark.parametrize("cut", [{"top_p": 0.7}, {"top_k": 20}, {"min_p": 0.05}])
def test_a_vllm_that_does_not_say_what_it_kept_samples_from_the_whole_distribution_only(cut: dict[str, float]) -> None:
    def run(**rollout: float) -> Config:
        settings = {"data": {"prompt_dataset": "p.jsonl"}, "actor": {"model_name_or_path": "m"}, "rollout": rollout}
        return build_config(settings, source="test")

    for version in ("0.27.1", "0.28.0rc1"):
        with pytest.raises(ConfigError, match=rf"vLLM {version} does not return .* use vLLM 0.28 or later"):
            check_sampling(run(**cut), version)
        check_sampling(run(top_p=1.0, top_k=-1, min_p=0.0), version)
    for installed in ("0.28", "0.29.0+cpu", "nightly"):
        check_sampling(run(**cut), installed)
