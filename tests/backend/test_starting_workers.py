"""In which order a run's actors start where engine and trainer share a GPU. No Ray runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_actors import FakeActor

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run import workers
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.backend.trainer.reports import RankReady
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.plan.virtual_time import run_virtual


def test_a_rank_imports_while_the_engine_starts_and_loads_when_its_memory_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = build_config(
        {
            "actor": {"model_name_or_path": "hub/model"},
            "data": {"prompt_dataset": "d"},
            "train": {"colocate_all": True, "check_agreement": False},
            "vllm": {"gpu_memory_utilization": 0.4},
        },
        source="test",
    )
    inputs = Inputs(device=Device(kind="cuda", threads=1), prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=()))
    happened: list[tuple[float, str]] = []

    def after(seconds: float, what: str, result: Any = None) -> Any:
        async def answer() -> Any:
            happened.append((asyncio.get_running_loop().time(), f"{what} begins"))
            await asyncio.sleep(seconds)
            happened.append((asyncio.get_running_loop().time(), f"{what} ends"))
            return result

        return answer

    class Engine:
        actor = FakeActor(ready=after(46.0, "engine"))

    class Rewards:
        def ready(self) -> list[Any]:
            return []

    async def create(config: Any, inputs: Any, placement: Any, ranks: list[Any]) -> None:
        ready = RankReady(parameters=1, attention="flash_attention_2")
        ranks.append(FakeActor(import_packages=after(22.0, "import"), start=after(10.0, "rank", ready)))

    monkeypatch.setattr(workers, "reserve", lambda *arguments, **settings: None)
    monkeypatch.setattr(workers, "_create_engines", lambda *arguments: [Engine()])
    monkeypatch.setattr(workers, "_create_rewards", lambda *arguments: Rewards())
    monkeypatch.setattr(workers, "_create_ranks", create)
    monkeypatch.setattr(workers, "start_rank", lambda rank, config, inputs: rank.start.remote())
    run_virtual(workers.start_workers(config, inputs))
    assert happened[:4] == [
        (0.0, "engine begins"),
        (0.0, "import begins"),
        (22.0, "import ends"),
        (46.0, "engine ends"),
    ]
    assert (46.0, "rank begins") in happened and (56.0, "rank ends") in happened
