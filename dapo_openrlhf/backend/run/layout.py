"""The layout of a run on GPUs: which actors are reserved together, and whether the machines hold them (without Ray).

A trainer "node" (``actor.num_gpus_per_node`` ranks) and an engine (``vllm.tensor_parallel_size`` workers) are one
bundle each of a single Ray placement group. A bundle never spans machines, though a machine may hold several bundles,
and the group is reserved as a whole or not at all. If engine and trainer share GPUs, a bundle is one GPU, and Ray
assigns half of it to each of the two; memory is divided by ``vllm.gpu_memory_utilization``, not by Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config

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
