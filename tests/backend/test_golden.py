"""What vLLM and DeepSpeed are told for shipped configurations, against files: a change shows up as a difference.

After a change that is meant: ``python tests/backend/test_golden.py`` writes the files anew; read the difference before committing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.actor_settings import engine_args, openrlhf_settings
from dapo_openrlhf.backend.transfer.receivers import WORKER_EXTENSION
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = ("quickstart_cpu", "one_gpu_qwen2.5_1.5b", "node_8gpu_qwen2.5_7b", "dapo_paper_qwen2.5_32b")


def config_of(name: str, **overrides: object) -> Config:
    model = {"actor.model_name_or_path": "some/model"}  # a folder would be made absolute
    return load_config(ROOT / "configs" / f"{name}.yaml", model | overrides)


def for_engine(name: str) -> Any:
    config = config_of(name)
    return _plain(engine_args(config, Device(kind=config.device, threads=1), index=0))


def strategy_of(config: Config) -> tuple[Any, dict[str, Any]]:
    """The trainer's strategy, and the optimizer that DeepSpeed is told of."""
    from dapo_openrlhf.backend.openrlhf_args import openrlhf_namespace
    from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly

    import_openrlhf_lightly()
    from dapo_openrlhf.backend.trainer.strategy import Strategy

    args = openrlhf_namespace(openrlhf_settings(config))
    adam = {"lr": args.actor.adam.lr, "betas": args.actor.adam.betas, "eps": args.actor.adam.eps}
    optimizer = {"type": "AdamW", "params": adam | {"weight_decay": args.actor.adam.weight_decay}}
    return Strategy(args, device=Device(kind=config.device, threads=1)), optimizer


def for_deepspeed(name: str) -> Any:
    config = config_of(name)
    strategy, optimizer = strategy_of(config)
    return _plain(strategy.get_ds_train_config(optimizer, max_norm=config.actor.max_norm))


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def golden(kind: str, name: str) -> Any:
    return json.loads((GOLDEN / f"{kind}-{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_engine_arguments(name: str) -> None:
    assert for_engine(name) == golden("engine", name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.real
def test_deepspeed_configuration(name: str) -> None:
    assert for_deepspeed(name) == golden("deepspeed", name)


@pytest.mark.real
def test_an_optimizer_on_the_host_is_torchs_fused_one_on_the_ranks_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DeepSpeed's own would be compiled, and Ray gives each process one thread."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    told = {}
    for offload in (False, True):
        strategy, optimizer = strategy_of(config_of("node_8gpu_qwen2.5_7b", **{"ds.adam_offload": offload}))
        told[offload] = strategy.get_ds_train_config(optimizer), strategy.threads
    ranks = config_of("node_8gpu_qwen2.5_7b").actor.num_gpus_per_node
    (config, threads), (_, alone) = told[True], told[False]
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert {"torch_adam": True, "fused": True}.items() <= config["optimizer"]["params"].items()
    assert (threads, alone) == (64 // ranks, 1)


def test_placement_decides_what_engines_are_told() -> None:
    shared, separate, parallel = (for_engine(name) for name in NAMES[1:])
    assert {arguments["worker_extension_cls"] for arguments in (shared, separate, parallel)} == {WORKER_EXTENSION}
    assert "distributed_executor_backend" not in separate
    assert (parallel["tensor_parallel_size"], parallel["distributed_executor_backend"]) == (4, "mp")
    assert not any(arguments["enforce_eager"] for arguments in (shared, separate, parallel)), "CUDA graphs are used"


def write() -> None:
    """Write every file anew."""
    GOLDEN.mkdir(exist_ok=True)
    for name in NAMES:
        for kind, made in (("engine", for_engine), ("deepspeed", for_deepspeed)):
            text = json.dumps(made(name), indent=2, sort_keys=True)
            (GOLDEN / f"{kind}-{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(write())
