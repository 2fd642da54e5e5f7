"""In which order a run's actors start where engine and trainer share a GPU. No Ray runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fake_actors import FakeActor

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run import workers
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.backend.trainer.reports import RankReady
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.pipeline.ports import TrainerLost
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


def replaced_after(
    room: float, monkeypatch: pytest.MonkeyPatch, *, alive: Callable[[float], Any] | None = None
) -> tuple[list[str], float]:
    """Replace a rank that gets a place in the cluster after ``room`` seconds; returns what was asked of it, and when it is
    ready."""
    rank_inputs = Inputs(
        device=Device(kind="cpu", threads=1), prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=())
    )
    config = build_config(
        {"actor": {"model_name_or_path": "hub/model"}, "data": {"prompt_dataset": "d"}}, source="test"
    )

    async def answer(seconds: float) -> None:
        await asyncio.sleep(max(0.0, room - asyncio.get_running_loop().time()) + seconds)

    async def start() -> RankReady:
        await answer(100.0)
        return RankReady(parameters=1, attention="sdpa")

    rank = FakeActor(alive=alive or answer, start=start)

    async def create(config: Any, inputs: Any, placement: Any, ranks: list[Any]) -> None:
        ranks.append(rank)

    monkeypatch.setattr(workers, "_create_ranks", create)
    monkeypatch.setattr(workers, "start_rank", lambda rank, config, inputs: rank.start.remote())

    async def main() -> float:
        started = workers.Workers(engines=[], ranks=[], rewards=None)  # type: ignore[arg-type]
        await workers.replace_ranks(config, rank_inputs, started)
        assert started.ranks == [rank]
        return asyncio.get_running_loop().time()

    ended = run_virtual(main())
    return [name for name, _ in rank.calls], ended


def test_a_new_rank_waits_for_a_machine_and_does_not_count_as_hanging_until_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, ready = replaced_after(1000.0, monkeypatch)
    assert calls[:2] == ["alive", "start"]
    assert ready == pytest.approx(1100.0)


def test_a_new_rank_that_finds_no_room_is_lost_and_the_message_says_what_it_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        TrainerLost, match=r"needs room in the cluster .* did not answer within 1800 s \(async.start_timeout"
    ):
        replaced_after(1e6, monkeypatch)


def test_a_new_rank_that_has_a_place_and_hangs_is_found_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def once(seconds: float) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.0 if asked == 1 else 1e6)

    with pytest.raises(TrainerLost, match="trainer rank 0 hangs: its process has not answered for 60 s"):
        replaced_after(1e6, monkeypatch, alive=once)
