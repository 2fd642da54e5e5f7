"""What the machines of a running Ray cluster have, and what of it is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ray
from ray._private.state import available_resources_per_node
from ray.util import get_node_ip_address

from dapo_openrlhf.backend.run.cluster import joined
from dapo_openrlhf.backend.run.node_look import Asked, Look
from dapo_openrlhf.backend.run.nodes import look_at_nodes
from dapo_openrlhf.backend.run.ray_address import resolve
from dapo_openrlhf.config.choices import DeviceKind
from dapo_openrlhf.config.errors import ConfigError

ACCELERATOR = "accelerator_type:"
"""Beginning of the resource by which Ray tells the kind of a machine's GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster."""

    address: str
    here: bool
    """Whether it is the machine that asks."""
    cpus: float
    free_cpus: float
    gpus: float
    free_gpus: float
    accelerator: str
    """Kind of its GPUs; empty where Ray does not know."""
    look: Look | str | None = None
    """What a look at it found, or why none could be taken; None of the machine that asks where it is alone, and of one on which
    nothing is placed."""


def nodes_of(address: str, asked: Asked, kind: DeviceKind) -> list[Node]:
    """The living machines of the cluster at ``address``, looked at. Raises ``ConfigError`` where none answers."""
    found = resolve(address)
    if found is None:
        raise ConfigError(f"RAY_ADDRESS: {address} names no running Ray cluster")
    with joined(found, lambda line: None):
        free = available_resources_per_node()
        own = get_node_ip_address()
        alive = {
            node["NodeID"]: _node(node, free.get(node["NodeID"], {}), own) for node in ray.nodes() if node["Alive"]
        }
        if [node.here for node in alive.values()] == [True]:
            return [*alive.values()]  # who asks can look for himself
        looks = look_at_nodes(asked, kind)
        return [replace(node, look=looks.get(name)) for name, node in alive.items()]


def _node(node: dict[str, object], free: dict[str, float], own: str) -> Node:
    resources = node["Resources"]
    assert isinstance(resources, dict)
    kinds = [name.removeprefix(ACCELERATOR) for name in resources if str(name).startswith(ACCELERATOR)]
    return Node(
        address=str(node["NodeManagerAddress"]),
        here=node["NodeManagerAddress"] in (own, "127.0.0.1"),
        cpus=resources.get("CPU", 0.0),
        free_cpus=free.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        accelerator=kinds[0] if kinds else "",
    )
