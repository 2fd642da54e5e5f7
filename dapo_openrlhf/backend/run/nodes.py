"""Looks at each machine of the joined Ray cluster before anything is placed there."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.node_look import Asked, Look, lacking, look, with_token
from dapo_openrlhf.config.choices import DeviceKind
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.heartbeat import waiting_for

LOOK_SECONDS = 120.0
"""Seconds in which every machine must have been looked at; a new worker process imports its packages first."""
RESOURCES: Mapping[DeviceKind, str] = {"cpu": "CPU", "cuda": "GPU"}
"""What a machine must have of Ray's resources for actors of a run to be placed there."""


def look_at_nodes(asked: Asked, kind: DeviceKind) -> dict[str, Look | str]:
    """What each machine on which a run may be placed has, by its id in the cluster; why where it could not be looked at."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(RESOURCES[kind], 0.0) > 0]
    runtime_env = Device(kind=kind, threads=1).runtime_env()
    with with_token(asked) as recognised, waiting_for("a look at each machine of the Ray cluster"):
        pending = {
            node["NodeID"]: ray.remote(look)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env=runtime_env,
            )
            .remote(recognised)
            for node in nodes
        }
        ray.wait([*pending.values()], num_returns=len(pending), timeout=LOOK_SECONDS, fetch_local=False)
        return {node: _result(answer) for node, answer in pending.items()}


def _result(answer: ray.ObjectRef[Look]) -> Look | str:
    try:
        return ray.get(answer, timeout=1.0)
    except GetTimeoutError:
        return f"nothing could be started there within {LOOK_SECONDS:g} s"
    except RayError as error:
        return str(error).strip().splitlines()[-1]


def refuse_lacking_nodes(asked: Asked, kind: DeviceKind) -> None:
    """Raise ``ConfigError`` if a machine of the joined cluster, of several, lacks what a run needs, naming each."""
    if sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    problems = [
        f"  node {addresses[node]}: {problem}"
        for node, found in look_at_nodes(asked, kind).items()
        for problem in lacking(found, asked)
    ]
    if problems:
        raise ConfigError("\n".join(["RAY_ADDRESS: not every machine of the Ray cluster can take part:", *problems]))
