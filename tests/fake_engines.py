"""Engines whose actors can be replaced, and the errors by which Ray says what became of a call. No Ray runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fake_actors import FakeActor
from ray.exceptions import RayActorError, RayTaskError


class FakeEngine:
    """A ``RemoteEngine`` whose actors ``start`` makes."""

    def __init__(self, start: Callable[[], FakeActor]) -> None:
        self._start = start
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        """Of all its actors, in order."""
        self.stopped = ""
        self.life = 0
        self.ended: set[int] = set()
        """Lives that were ended."""
        self.actor = self._new()

    def _new(self) -> FakeActor:
        actor = self._start()
        return actor.with_calls(self.calls, **actor.answers)

    def stop(self, cause: str, *, life: int) -> bool:
        """Note the cause, if that life is not over."""
        if life == self.life:
            self.stopped = cause
            self.ended.add(life)
        return life == self.life

    def replace(self) -> None:
        """Start another actor."""
        self.life += 1
        self.actor = self._new()


async def after(seconds: float, result: Any = None) -> Any:
    """Return the result, or raise it, after some seconds."""
    await asyncio.sleep(seconds)
    if isinstance(result, Exception):
        raise result
    return result


def died() -> Exception:
    """What a call of a dead actor raises."""
    return RayActorError()


def failed(cause: Exception | str) -> Exception:
    """What a call raises whose method has raised."""
    error = RuntimeError(cause) if isinstance(cause, str) else cause
    return RayTaskError("method", str(error), error).as_instanceof_cause()  # type: ignore[no-any-return]
