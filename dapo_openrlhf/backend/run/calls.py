"""Calls of actors with a deadline, and the errors that name who is late, failed or died."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.heartbeat import waiting_for

ECHO_SECONDS = 2.0
"""Seconds to wait for the other calls after an error: when a process dies, its peers' collectives fail first."""


class PipelineTimeout(RuntimeError):
    """A phase took longer than its deadline; the message names who is late, the phase and what to look at."""


class WorkerFailed(RuntimeError):
    """An actor raised an exception; the message names the actor and the phase, and ends with that exception."""


class WorkerDied(WorkerFailed):
    """An actor's process is gone."""


async def all_within(calls: Sequence[Any], names: Sequence[str], timeout: float, what: str, setting: str) -> list[Any]:
    """Results of remote calls, in order.

    Raises :class:`PipelineTimeout` naming the late actors, :class:`WorkerDied` or :class:`WorkerFailed` naming the one
    that failed.
    """
    tasks = {asyncio.ensure_future(_result(call)): name for call, name in zip(calls, names, strict=True)}
    try:
        with waiting_for(lambda: f"{', '.join(sorted(tasks[task] for task in tasks if not task.done()))} ({what})"):
            done, late = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        errors = [task.exception() for task in done]
        if late and any(errors) and not any(isinstance(error, RayActorError) for error in errors):
            more, late = await asyncio.wait(late, timeout=ECHO_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            done |= more
    finally:
        for task in tasks:
            task.cancel()
    failed = {tasks[task]: error for task in done if (error := task.exception()) is not None}
    for name, error in failed.items():
        if isinstance(error, RayActorError):
            raise WorkerDied(f"{what}: {name} died: {error}") from error
    for name, error in failed.items():
        if isinstance(error, RayTaskError):
            raise WorkerFailed(f"{what}: {name} failed: {error}") from error
        raise error
    if late:
        raise PipelineTimeout(
            f"{what}: {', '.join(sorted(tasks[task] for task in late))} did not answer within {timeout:g} s ({setting}); "
            "look at its log in Ray's session folder, and at whether its process is alive"
        )
    return [task.result() for task in tasks]


async def _result(call: ray.ObjectRef[Any]) -> Any:
    return await call
