"""Actors whose methods are functions: called as ``method.remote(...)``, awaited for their result. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Method:
    """An actor's method: called as ``method.remote(...)``, awaited for its result."""

    def __init__(
        self, name: str, calls: list[tuple[str, tuple[Any, ...]]], answer: Callable[..., Any], more: int = 0
    ) -> None:
        self._name, self._calls, self._answer, self._more = name, calls, answer, more

    def remote(self, *arguments: Any) -> Any:
        self._calls.append((self._name, arguments))

        async def result() -> Any:
            answer = self._answer(*arguments)
            return await answer if asyncio.iscoroutine(answer) else answer

        return (result(), *range(self._more)) if self._more else result()

    def options(self, *, num_returns: int = 1, concurrency_group: str = "") -> Method:
        """The first result is the answer; the others are opaque."""
        return Method(self._name, self._calls, self._answer, more=num_returns - 1)


class FakeActor:
    """Knows the methods it was given and no others."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        for name, answer in answers.items():
            setattr(self, name, Method(name, self.calls, answer))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]
