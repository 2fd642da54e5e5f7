"""Runs a user's environment in real processes, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from patience import HANG_SECONDS

from dapo_openrlhf.environments.host import EnvironmentHost
from dapo_openrlhf.environments.messages import Action, EnvironmentFailed, Step
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.types import Prompt

T = TypeVar("T")
PROMPT = Prompt(id=3, text="<s>What is 1+1?", token_ids=(1, 2, 3), label={"answer": "2"}, columns={"level": 4})


def in_host(
    folder: Path,
    source: str,
    play: Callable[[EnvironmentHost], Awaitable[T]],
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> T:
    """What ``play`` returns about a host of the environment in ``source``, with one process and no deadline to meet."""
    file = folder / "environment.py"
    file.write_text(source)

    async def run() -> T:
        limits = {"timeout": HANG_SECONDS, "start_timeout": HANG_SECONDS, "processes": 1, **options}
        host = EnvironmentHost(EnvironmentSettings(file=str(file), **limits), clock=clock)
        try:
            async with asyncio.timeout(HANG_SECONDS):
                return await play(host)
        finally:
            await host.end()

    return asyncio.run(run())


def limit(host: EnvironmentHost, seconds: float) -> None:
    """Give the calls that follow a deadline, so that those before have none to meet."""
    for process in host._processes:
        process._settings = replace(process._settings, timeout=seconds)


async def stepped(host: EnvironmentHost, episode: str, text: str, **rest: Any) -> Step | EnvironmentFailed:
    """The answer to an action, or the error."""
    try:
        return await host.step(episode, Action(text=text, observed=PROMPT.text, **rest))
    except EnvironmentFailed as error:
        return error


async def opened(host: EnvironmentHost, *episodes: str) -> None:
    """Open episodes, all about the same prompt."""
    for episode in episodes:
        await host.open(episode, PROMPT)
