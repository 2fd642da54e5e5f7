"""Reserves the GPUs of a :class:`~dapo_openrlhf.backend.run.layout.Layout` in the joined cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.layout import Layout, check_fit
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.heartbeat import waiting_for


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
