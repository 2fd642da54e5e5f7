"""Every transport of the table is whole: a setting, a sender, a receiver, a publisher, and what they can do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from fake_actors import FakeActor

from dapo_openrlhf.backend.messages import WeightLayout
from dapo_openrlhf.backend.run.publishers.opening import Irreplaceable, Publisher, open_publisher, reviver_of
from dapo_openrlhf.backend.run.workers import Workers
from dapo_openrlhf.backend.transfer.receivers import RECEIVERS
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.transports import TRANSPORTS, TransportName

BACKEND = "dapo_openrlhf.backend"
LAYOUT = WeightLayout(names=("a",), dtypes=("float32",), shapes=((1,),), sizes=(4,))


def config_with(transport: TransportName) -> Config:
    """A configuration whose placement allows it."""
    shared = TRANSPORTS[transport].shared_gpu == "needed"
    return build_config(
        {
            "actor": {"model_name_or_path": "model"},
            "data": {"prompt_dataset": "prompts.jsonl"},
            "train": {"colocate_all": shared},
            "vllm": {"sync_backend": transport, "gpu_memory_utilization": 0.4},
        },
        source="test",
    )


def opened(transport: TransportName) -> Publisher:
    """Its publisher, with one rank and one engine."""
    rank = FakeActor(
        weight_layout=lambda: LAYOUT,
        transfer_address=lambda: ("10.0.0.1", 4242),
        open_nccl=lambda address, port, size: None,
        open_ipc=lambda: None,
    )
    engine: Any = SimpleNamespace(actor=FakeActor(join_transfer=lambda info: None))
    workers = Workers(engines=[engine], ranks=[rank], rewards=SimpleNamespace())  # type: ignore[arg-type]
    return asyncio.run(open_publisher(config_with(transport), workers, on_spans=lambda spans: None))


def test_every_choice_of_the_setting_has_a_row_and_every_row_a_choice() -> None:
    choices = get_args(type(config_with("object_store").vllm).model_fields["sync_backend"].annotation)
    assert choices == ("auto", *TRANSPORTS)
    assert tuple(TRANSPORTS) == get_args(TransportName)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_row_has_a_file_for_each_of_its_ends_and_for_who_is_told_when(transport: TransportName) -> None:
    for folder in ("transfer.senders", "transfer.receivers", "run.publishers"):
        assert find_spec(f"{BACKEND}.{folder}.{transport}") is not None, f"{folder} has no {transport}.py"


def extensions() -> Iterator[str]:
    for receiver in RECEIVERS.values():
        if receiver.worker_extension is not None:
            yield receiver.worker_extension


def test_a_row_has_a_receiver_that_vllm_is_told_of() -> None:
    assert RECEIVERS.keys() == TRANSPORTS.keys()
    assert len({receiver.backend for receiver in RECEIVERS.values()}) == len(RECEIVERS)
    for extension in extensions():
        module, _, name = extension.rpartition(".")
        spec = find_spec(module)
        assert spec is not None, f"there is no {module}"
        assert f"class {name}(" in Path(str(spec.origin)).read_text()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_row_has_a_publisher_that_revives_engines_if_it_says_so(transport: TransportName) -> None:
    publisher = opened(transport)
    assert type(publisher).__module__ == f"{BACKEND}.run.publishers.{transport}"
    assert hasattr(publisher, "revive") == TRANSPORTS[transport].revives
    assert (reviver_of(publisher) is publisher) == TRANSPORTS[transport].revives


def test_a_lost_engine_that_no_new_one_can_replace_ends_the_run_with_the_ways_to_go_on() -> None:
    with pytest.raises(RuntimeError, match=r"^engine 3 is lost.*--resume, or use vllm\.sync_backend object_store$"):
        asyncio.run(Irreplaceable().revive(3))
