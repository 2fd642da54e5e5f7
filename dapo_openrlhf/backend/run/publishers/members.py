"""One round of calls to the members of a transfer group, which either all succeed or are all told to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.backend.messages import TransferAborted

LEAVING_SECONDS = 30.0
"""Seconds that members have to leave a transfer that was given up; one that has not hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a round, in seconds."""

    timeout: float
    """Until every member must have answered."""
    leaving: float = LEAVING_SECONDS
    """Until every member must have left a round that was given up. An engine that first finishes its running groups
    leaves only then."""


@dataclass(slots=True)
class Round:
    """What became of each member's call."""

    results: dict[str, Any] = field(default_factory=dict)
    died: dict[str, Exception] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    """Members that raised anything but ``TransferAborted``."""
    aborted: dict[str, Exception] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)


async def held(
    calls: Mapping[str, Awaitable[Any]], limits: Limits, *, abort: Callable[[str], None], what: str
) -> Round:
    """Wait for every member's call.

    When one fails, or at the end of the time, ``abort`` is called with the reason, and the others have to leave. It is called too when the wait is cancelled, so that no member is left behind.
    """
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    try:
        done, pending = await asyncio.wait(tasks.values(), timeout=limits.timeout, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            abort(_reason(tasks, done, f"{what}: not done within {limits.timeout:g} s"))
            await asyncio.wait(pending, timeout=limits.leaving)
    except asyncio.CancelledError:
        abort(f"{what}: given up")
        raise
    finally:
        for task in tasks.values():
            task.cancel()
    outcome = Round()
    for name, task in tasks.items():
        _note(outcome, name, task)
    return outcome


def _reason(tasks: Mapping[str, asyncio.Future[Any]], done: Collection[asyncio.Future[Any]], otherwise: str) -> str:
    reasons = (f"{name}: {task.exception()}" for name, task in tasks.items() if task in done and task.exception())
    return next(reasons, otherwise)


def _note(outcome: Round, name: str, task: asyncio.Future[Any]) -> None:
    if not task.done() or task.cancelled():
        outcome.late.add(name)
        return
    match task.exception():
        case None:
            outcome.results[name] = task.result()
        case TransferAborted() as error:  # Ray's error is of the actor's class as well
            outcome.aborted[name] = error
        case RayActorError() as error:
            outcome.died[name] = error
        case RayTaskError() as error:
            outcome.failed[name] = error
        case error:
            raise error
