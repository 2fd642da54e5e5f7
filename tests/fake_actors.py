"""Actors whose methods are functions: called as ``method.remote(...)``, awaited for their result. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Self


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

    def options(self, *, num_returns: int | str = 1, concurrency_group: str = "") -> Method | Stream:
        """The first result is the answer; the others are opaque. Of a stream all items are answers."""
        if num_returns == "streaming":
            return Stream(self._name, self._calls, self._answer)
        return Method(self._name, self._calls, self._answer, more=int(num_returns) - 1)


class Both(list[tuple[str, tuple[Any, ...]]]):
    """Notes a call in two lists."""

    def __init__(self, *lists: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._lists = lists

    def append(self, call: tuple[str, tuple[Any, ...]]) -> None:
        """Note it in both."""
        for noted in self._lists:
            noted.append(call)


class Stream:
    """A method that streams what its answer lists: iterated for references, each awaited for its item."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[Any, ...]]], answer: Callable[..., Any]) -> None:
        self._name, self._calls, self._answer = name, calls, answer

    async def remote(self) -> AsyncIterator[Any]:
        self._calls.append((self._name, ()))
        answer = self._answer()
        for item in await answer if asyncio.iscoroutine(answer) else answer:
            yield Reference(item)


class Reference:
    """To an item of a stream; awaiting it gives the item, or raises it."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


class FakeActor:
    """Knows the methods it was given and no others."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        for name, answer in answers.items():
            setattr(self, name, Method(name, self.calls, answer))

    @classmethod
    def with_calls(cls, calls: list[tuple[str, tuple[Any, ...]]], **answers: Callable[..., Any]) -> Self:
        """An actor whose calls are noted in that list too."""
        actor = cls()
        actor.answers = answers
        for name, answer in answers.items():
            setattr(actor, name, Method(name, Both(actor.calls, calls), answer))
        return actor

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]
