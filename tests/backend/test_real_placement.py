"""Placement on a simulated Ray cluster of two machines with eight GPUs each: the real reservations, stub actors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import stub_actors
from patience import HANG_SECONDS
from ray.cluster_utils import Cluster
from ray.util import remove_placement_group
from stub_actors import Place, StubActor, StubEngine, StubRank, StubRewards
from test_placement import config

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run import workers as run_workers
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.placement import Placement, reserve
from dapo_openrlhf.backend.run.stop_tokens import StopTokens
from dapo_openrlhf.config.errors import ConfigError

pytestmark = pytest.mark.real

CUDA = Device(kind="cuda", threads=1)
MEMORY = 80 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two machines of eight GPUs, as far as Ray knows."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 32, "num_gpus": 8, "object_store_memory": MEMORY, "include_dashboard": False},
    )
    try:
        made.add_node(num_cpus=32, num_gpus=8, object_store_memory=MEMORY)
        ray.init(address=made.address, log_to_driver=False)
        ray.cloudpickle.register_pickle_by_value(stub_actors)  # workers do not find the tests' folder
        yield
        ray.cloudpickle.unregister_pickle_by_value(stub_actors)
    finally:
        ray.shutdown()
        made.shutdown()


class Reserved:
    """A reservation that is given back at the end."""

    def __init__(self, **asked: Any) -> None:
        self.config = config(**asked)
        self._asked: list[Any] = []

    def __enter__(self) -> Reserved:
        placement = reserve(self.config, CUDA, training=True)
        assert isinstance(placement, Placement)
        self.placement = placement
        return self

    def __exit__(self, *error: object) -> None:
        for actor in self._asked:
            ray.kill(actor)
        remove_placement_group(self.placement._group)

    def places(self, kind: str, indices: range) -> list[Place]:
        """Where stub actors with the options of these ranks or engines find themselves."""
        options = self.placement.of_rank if kind == "rank" else self.placement.of_engine
        actors = [ray.remote(StubActor).options(**options(index)).remote() for index in indices]
        self._asked += actors
        found: list[Place] = ray.get([actor.where.remote() for actor in actors], timeout=HANG_SECONDS)
        return found


def test_ranks_of_a_node_sit_together_and_engines_never_straddle(cluster: None) -> None:
    with Reserved(per_node=6, engines=2, workers=4) as reserved:
        ranks = reserved.places("rank", range(6))
        engines = reserved.places("engine", range(2))
    assert len({machine for machine, _ in ranks}) == 1
    assert sorted(gpu for _, gpus in ranks for gpu in gpus) == [str(index) for index in range(6)]
    assert [len(set(gpus)) for _, gpus in engines] == [4, 4]
    assert {machine for machine, _ in engines}.isdisjoint({machine for machine, _ in ranks})
    assert not set(engines[0][1]) & set(engines[1][1])


def test_a_trainer_of_two_machines_fills_them(cluster: None) -> None:
    with Reserved(nodes=2, per_node=5, engines=2, workers=3) as reserved:
        first, second = reserved.places("rank", range(4, 6))  # the last of one node, the first of the next
        engines = reserved.places("engine", range(2))
    assert first[0] != second[0]
    assert {machine for machine, _ in engines} == {first[0], second[0]}


def test_engine_and_rank_share_a_gpu(cluster: None) -> None:
    with Reserved(per_node=3, engines=3, shared=True) as reserved:
        ranks, engines = reserved.places("rank", range(3)), reserved.places("engine", range(3))
    assert ranks == engines
    assert len(set(ranks)) == 3


def test_what_the_cluster_cannot_hold_is_refused_at_once(cluster: None) -> None:
    with pytest.raises(ConfigError, match=r"do not fit into 2 machine\(s\) with 8, 8 GPUs"):
        reserve(config(nodes=2, per_node=5, engines=2, workers=4), CUDA, training=True)


async def _agreed(*_: Any) -> str:
    return "stubs compute nothing"


@pytest.mark.parametrize("shared", [False, True])
def test_starting_a_run_places_its_workers(cluster: None, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    monkeypatch.setattr(run_workers, "EngineActor", StubEngine)
    monkeypatch.setattr(run_workers, "rank_actor", lambda: ray.remote(StubRank))
    monkeypatch.setattr(run_workers, "_create_rewards", lambda config, say: StubRewards())
    monkeypatch.setattr(run_workers, "check_agreement", _agreed)
    placements: list[Any] = []
    monkeypatch.setattr(run_workers, "reserve", lambda *a, **k: placements.append(reserve(*a, **k)) or placements[0])
    asked = config(per_node=2, engines=2, workers=1 if shared else 4, shared=shared)
    workers = asyncio.run(
        run_workers.start_workers(
            asked, Inputs(device=CUDA, prompts=[], problems=[], stop=StopTokens(ids=(1,), notes=()))
        )
    )
    actors = [*workers.ranks, *(engine.actor for engine in workers.engines)]
    try:
        places: list[Place] = ray.get([actor.where.remote() for actor in actors], timeout=HANG_SECONDS)
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(placements[0]._group)
    ranks, engines = places[:2], places[2:]
    if shared:
        assert ranks == engines
    else:
        assert [len(gpus) for _, gpus in (*ranks, *engines)] == [1, 1, 4, 4]
    assert ranks[0][0] == ranks[1][0]
    assert any("flash_attention_2 is not installed" in note for note in workers.notes)
