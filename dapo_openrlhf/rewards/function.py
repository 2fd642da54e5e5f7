"""A user's ``reward_func``, called as OpenRLHF 0.11.2 calls it (openrlhf/utils/agent.py), and with more if it asks for more."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.replies import read_reply
from dapo_openrlhf.rewards.user_file import load_file
from dapo_openrlhf.types import Score

GIVEN = ("queries", "prompts", "labels")
RESPONSES = "responses"
"""A parameter of this name gets the responses without end and padding tokens, unless a column has the name."""

RewardFunction = Callable[..., Any]
"""A ``reward_func(queries, prompts, labels)`` of lists of equal length; plain, ``async``, or a callable object."""


def load_function(file: str) -> RewardFunction:
    """Load ``reward_func`` from a Python file. Raises what the file raises, and ``ImportError`` if none fits."""
    module = load_file(file, "reward_function")
    function: Any = vars(module).get("reward_func")
    if inspect.isclass(function):
        raise ImportError(
            f"reward_func of {file} is a class; make an instance of it: reward_func = {function.__name__}()"
        )
    if not callable(function):
        raise ImportError(f"{file} defines no reward_func(queries, prompts, labels)")
    reward_func: RewardFunction = function
    return reward_func


class FunctionReward:
    """A reward that calls a user's function with the columns of the row that it asks for."""

    def __init__(self, function: RewardFunction, *, correct_from: float) -> None:
        """Raises ``ImportError`` for a function that does not take queries, prompts and labels."""
        self._function = function
        self._correct_from = correct_from
        self._wanted, self._takes_all = _columns_wanted(function)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, question: Question) -> list[Score]:
        """Score each response. Raises what the function raises, and ``BadReply``."""
        count = len(question)
        columns = {name: [value] * count for name, value in self._columns(question.columns).items()}
        if RESPONSES in self._wanted and RESPONSES not in columns:
            columns[RESPONSES] = list(question.responses)
        reply = self._function(list(question.queries), [question.prompt] * count, [question.label] * count, **columns)
        if inspect.isawaitable(reply):
            reply = self._wait_for(reply)
        return read_reply(reply, self._correct_from, count)

    def _columns(self, columns: Mapping[str, object]) -> Mapping[str, object]:
        missing = [n for n, needed in self._wanted.items() if needed and n not in columns and n != RESPONSES]
        if missing:
            raise TypeError(
                f"reward_func wants {', '.join(missing)}, which is no column of the row; it has {sorted(columns)}"
            )
        if self._takes_all:
            return {name: value for name, value in columns.items() if name not in GIVEN}
        return {name: columns[name] for name in self._wanted if name in columns}

    def _wait_for(self, reply: Awaitable[Any]) -> Any:
        """Await a reply in one event loop for all calls, since what a function keeps, such as a connection, belongs to
        it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()

        async def result() -> Any:
            return await reply

        return self._loop.run_until_complete(result())


def _columns_wanted(function: RewardFunction) -> tuple[dict[str, bool], bool]:
    """The parameters beyond the first three, with whether each is required, and whether there are ``**kwargs``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C: it gets what OpenRLHF would give it
        return {}, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 3 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in parameters)
        raise ImportError(f"reward_func({names}) takes too few arguments: it is called with queries, prompts, labels")
    named = positional[3:] + [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    wanted = {p.name: p.default is p.empty for p in named if p.kind != p.POSITIONAL_ONLY}
    return wanted, any(p.kind == p.VAR_KEYWORD for p in parameters)
