"""Assigns GPUs to actors.

A trainer "node" (``actor.num_gpus_per_node`` ranks) and an engine (``vllm.tensor_parallel_size`` workers) are one
bundle each of a single Ray placement group. A bundle never spans machines, though a machine may hold several bundles,
and the group is reserved as a whole or not at all. If engine and trainer share GPUs, a bundle is one GPU, and Ray
assigns half of it to each of the two; memory is divided by ``vllm.gpu_memory_utilization``, not by Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.heartbeat import waiting_for

SHARE = 0.5
"""Fraction of a GPU that Ray assigns to each of two actors that share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The bundles, and the bundle that each actor lives in."""

    bundles: tuple[int, ...]
    """The number of GPUs in each bundle."""
    ranks: tuple[int, ...]
    """The bundle of each trainer rank."""
    engines: tuple[int, ...]
    """The bundle of each engine."""
    gpus_per_rank: float
    gpus_per_engine: float

    @classmethod
    def of(cls, config: Config, *, training: bool = True) -> Layout:
        """The layout that the configuration asks for; without ``training`` it has no trainer."""
        nodes, per_node = (config.actor.num_nodes, config.actor.num_gpus_per_node) if training else (0, 0)
        engines, workers = config.vllm.num_engines, config.vllm.tensor_parallel_size
        if config.train.colocate_all and training:
            places = tuple(range(engines))
            return cls(bundles=(1,) * engines, ranks=places, engines=places, gpus_per_rank=SHARE, gpus_per_engine=SHARE)
        return cls(
            bundles=(per_node,) * nodes + (workers,) * engines,
            ranks=tuple(node for node in range(nodes) for _ in range(per_node)),
            engines=tuple(range(nodes, nodes + engines)),
            gpus_per_rank=1,
            gpus_per_engine=workers,
        )

    def resources(self) -> list[dict[str, float]]:
        """The bundles in Ray's format, with one CPU per actor."""
        actors = [*self.ranks, *self.engines]
        return [{"GPU": gpus, "CPU": actors.count(index)} for index, gpus in enumerate(self.bundles)]


def check_fit(config: Config, layout: Layout, machines: Sequence[float]) -> None:
    """Refuse a layout that does not fit on machines with these numbers of GPUs. Raises ``ConfigError``."""
    largest = max(machines, default=0)
    has = f"{len(machines)} machine(s) with {', '.join(f'{gpus:g}' for gpus in machines) or 'no'} GPUs"
    if config.vllm.tensor_parallel_size > largest:
        raise ConfigError(
            f"vllm.tensor_parallel_size: {config.vllm.tensor_parallel_size} GPUs of one machine are asked for, the cluster "
            f"has {has}; use at most {largest:g}"
        )
    if layout.ranks and not config.train.colocate_all and config.actor.num_gpus_per_node > largest:
        raise ConfigError(
            f"actor.num_gpus_per_node: {config.actor.num_gpus_per_node} GPUs of one machine are asked for, the cluster "
            f"has {has}; use at most {largest:g}, and more of actor.num_nodes"
        )
    free = list(machines)
    for gpus in sorted(layout.bundles, reverse=True):  # largest first, each on the fullest machine that fits
        fitting = [index for index, left in enumerate(free) if left >= gpus]
        if not fitting:
            raise ConfigError(
                f"actor.num_nodes {config.actor.num_nodes} x actor.num_gpus_per_node {config.actor.num_gpus_per_node} and "
                f"vllm.num_engines {config.vllm.num_engines} x vllm.tensor_parallel_size "
                f"{config.vllm.tensor_parallel_size} do not fit into {has}, each of them on one machine; "
                "use fewer or smaller ones"
            )
        free[min(fitting, key=lambda index: free[index])] -= gpus


def machines_of_cluster() -> list[float]:
    """Numbers of GPUs of those machines in the Ray cluster that have any."""
    gpus = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return sorted((count for count in gpus if count), reverse=True)


class Placement:
    """A reserved layout."""

    def __init__(self, layout: Layout, *, timeout: float) -> None:
        """Reserve the layout. Raises ``ConfigError`` if other work holds the GPUs for over ``timeout`` seconds."""
        self._layout = layout
        self._group: PlacementGroup = placement_group(layout.resources(), strategy="PACK")
        with waiting_for("GPUs that other work of the cluster holds (ray status shows whose)"):
            reserved = self._group.wait(timeout)
        if not reserved:
            raise ConfigError(
                f"the cluster has the {sum(layout.bundles)} GPUs in all, but did not free them within {timeout:g} s "
                "(async.start_timeout); `ray status` shows who holds them"
            )
        self._order = together(placement_group_table(self._group)["bundles_to_node_id"], layout.bundles)

    def of_rank(self, rank: int) -> dict[str, Any]:
        """Ray options of a trainer rank's actor."""
        return self._options(self._layout.ranks[rank], self._layout.gpus_per_rank)

    def of_engine(self, index: int) -> dict[str, Any]:
        """Ray options of an engine's actor."""
        return self._options(self._layout.engines[index], self._layout.gpus_per_engine)

    def _options(self, bundle: int, gpus: float) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=self._order[bundle])
        return {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": strategy}


def together(machine_of: Mapping[int, str], sizes: Sequence[int]) -> list[int]:
    """Order the bundles so that neighbours of equal size are on one machine, as far as possible.

    Ray says where a bundle is only once it is reserved; bundles of equal size are interchangeable.
    """
    machines = list(dict.fromkeys(machine_of[index] for index in range(len(sizes))))
    order = list(range(len(sizes)))
    for size in set(sizes):
        places = [index for index, its in enumerate(sizes) if its == size]
        sorted_places = sorted(places, key=lambda index: machines.index(machine_of[index]))
        for place, bundle in zip(places, sorted_places, strict=True):
            order[place] = bundle
    return order


class Anywhere:
    """Placement on CPU machines: one core per process, wherever Ray has one."""

    def of_rank(self, rank: int) -> dict[str, Any]:
        """Ray options of a trainer rank's actor."""
        return {"num_cpus": 1}

    def of_engine(self, index: int) -> dict[str, Any]:
        """Ray options of an engine's actor."""
        return {"num_cpus": 1}


def reserve(config: Config, device: Device, *, training: bool) -> Placement | Anywhere:
    """Reserve devices of the joined cluster for a run. Raises ``ConfigError`` when they do not fit or are not freed."""
    if device.kind == "cpu":
        return Anywhere()
    layout = Layout.of(config, training=training)
    check_fit(config, layout, machines_of_cluster())
    return Placement(layout, timeout=config.async_.start_timeout)
