"""The environment that a configuration names, loaded once before anything is started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import EnvironmentFailed
from dapo_openrlhf.environments.process import EnvironmentUnavailable
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.types import Prompt


def environment_settings(config: Config) -> EnvironmentSettings | None:
    """The settings of environment processes; None without an environment. Raises ``ConfigError`` for a missing file."""
    if config.train.agent_func_path is None:
        return None
    file = Path(config.train.agent_func_path)
    if not file.is_file():
        raise ConfigError(f"train.agent_func_path: there is no file {file}")
    return EnvironmentSettings(
        file=str(file.resolve()),
        timeout=config.environment.timeout,
        memory=config.environment.memory,
        processes=config.environment.workers,
        start_timeout=config.async_.start_timeout,
        idle=config.async_.generate_timeout,
    )


def check_environment(settings: EnvironmentSettings, first: Prompt | None = None) -> None:
    """Load the file once, and begin an episode with a prompt if one is given.

    Raises ``ConfigError`` with the error that the file or its ``reset`` raises.
    """
    if problem := asyncio.run(_problem(replace(settings, processes=1), first)):
        raise ConfigError(problem)


async def _problem(settings: EnvironmentSettings, first: Prompt | None) -> str:
    """What keeps the environment from being loaded or begun, with what it has printed; empty if nothing does."""
    host = EnvironmentHost(settings)
    try:
        await host.ready()
        if first is not None:
            await host.open("check", first)
    except (EnvironmentUnavailable, EnvironmentFailed) as error:
        setting = "" if isinstance(error, EnvironmentUnavailable) else "train.agent_func_path: "
        return f"{setting}{error}" + "".join(f"\nenvironment: {line}" for line in host.printed())
    finally:
        await host.end()
    return ""
