"""Settings of environments, and what does not go with them (pydantic)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dapo_openrlhf.config.section import PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from dapo_openrlhf.config.settings import Config


class EnvironmentSection(Section):
    timeout: PositiveFloat = 30.0
    """Seconds that a reset or a step of an environment may take before its process is killed and its group fails."""
    memory: PositiveInt = 2048
    """MiB of memory that an environment process may take."""
    workers: PositiveInt = 2
    """Number of environment processes; each holds many episodes at once."""


def impossible_environments(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting that does not go with an environment, or has no meaning without one."""
    path, environment = config.train.agent_func_path, config.environment
    if path is None:
        if environment != EnvironmentSection():
            changed = next(n for n, value in environment if value != EnvironmentSection.model_fields[n].default)
            yield f"environment.{changed}: has no meaning without an environment; set train.agent_func_path, or leave it out"
        return
    if not path.endswith(".py"):
        yield f"train.agent_func_path: {path} is no Python file; give one with AgentExecutor or an Environment"
    if not config.reward.by_rule:
        yield (
            f"reward.remote_url: {' '.join(config.reward.remote_url)} would never be asked, because the environment of "
            "train.agent_func_path gives the rewards; leave one of the two out"
        )
    if environment.timeout > config.async_.generate_timeout:
        yield (
            f"environment.timeout: {environment.timeout:g} s for one step is more than async.generate_timeout "
            f"{config.async_.generate_timeout:g} s for its whole group; use at most that"
        )
