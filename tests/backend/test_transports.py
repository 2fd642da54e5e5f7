"""Every transport of the table is whole: a setting, a publisher, a communicator, and what they can do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from fake_actors import FakeActor
from torch.distributed import HashStore

from dapo_openrlhf.backend.messages import Meeting
from dapo_openrlhf.backend.run.publishers.broadcast import BroadcastPublisher
from dapo_openrlhf.backend.run.publishers.groups import GroupKind
from dapo_openrlhf.backend.run.publishers.opening import Publisher, open_publisher
from dapo_openrlhf.backend.run.workers import Workers
from dapo_openrlhf.backend.transfer.communicators import communicator
from dapo_openrlhf.backend.transfer.receivers import WORKER_EXTENSION
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.transports import TRANSPORTS, TransportName
from dapo_openrlhf.pipeline.ports import EngineReviver


def config_with(transport: TransportName) -> Config:
    """A configuration whose placement allows it."""
    row = TRANSPORTS[transport]
    cpu, shared = row.machine == "cpu", row.shared_gpu == "needed"
    return build_config(
        {
            **({"device": "cpu", "ds": {"attn_implementation": "sdpa"}} if cpu else {}),
            "actor": {"model_name_or_path": "model"},
            "data": {"prompt_dataset": "prompts.jsonl"},
            "train": {"colocate_all": shared},
            "vllm": {"sync_backend": transport, "gpu_memory_utilization": 0.4},
        },
        source="test",
    )


def opened(transport: TransportName, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """Its publisher, with one rank and one engine."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    engine: Any = SimpleNamespace(actor=FakeActor())
    workers = Workers(engines=[engine], ranks=[FakeActor()], rewards=SimpleNamespace())  # type: ignore[arg-type]
    return asyncio.run(open_publisher(config_with(transport), workers, on_spans=lambda spans: None))


def test_every_choice_of_the_setting_has_a_row_and_every_row_a_choice() -> None:
    choices = get_args(type(config_with("object_store").vllm).model_fields["sync_backend"].annotation)
    assert choices == ("auto", *TRANSPORTS)
    assert tuple(TRANSPORTS) == get_args(TransportName)


def test_vllm_is_told_of_a_receiver_that_is_there() -> None:
    module, _, name = WORKER_EXTENSION.rpartition(".")
    spec = find_spec(module)
    assert spec is not None and f"class {name}:" in Path(str(spec.origin)).read_text()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_row_has_a_publisher_that_revives_engines(transport: TransportName, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = opened(transport, monkeypatch)
    reviver: EngineReviver = publisher
    assert callable(reviver.revive)
    if isinstance(publisher, BroadcastPublisher):
        groups: Any = publisher._groups
        assert groups._kind == GroupKind(transport=transport, workers=1)
        assert groups._host.address == "127.0.0.1", "the only machine that is left"
    else:
        assert transport == "object_store"


@pytest.mark.parametrize("kind", ["gloo", "shared"])
def test_a_row_has_a_communicator(kind: Any) -> None:
    """Those of NCCL and of CUDA IPC need a GPU; another name has none."""
    store = HashStore()
    at = Meeting(kind=kind, address="127.0.0.1", port=1, generation=0, timeout=9.0)
    made = communicator(at, store, 0, 1, torch.device("cpu"))
    made.broadcast(torch.zeros(4, dtype=torch.uint8)).wait()
    with pytest.raises(AssertionError):
        communicator(replace(at, kind="pigeon"), store, 0, 1, torch.device("cpu"))  # type: ignore[arg-type]
