"""Worked examples that are put before each problem to show a model how to answer."""

from __future__ import annotations

from collections.abc import Callable

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.prepare.rows import Message, Source


def read_turns(source: Source, wrap: Callable[[str], str]) -> tuple[Message, ...]:
    """Two turns of a chat for each row: the problem, wrapped like those to be solved, and the response unchanged.

    Raises ``ConfigError`` if there is no row, and for a row without the texts ``input`` and ``response``.
    """
    turns: list[Message] = []
    for where, row in source.rows():
        if isinstance(row, ConfigError):
            raise row
        texts = [row.get(key) if isinstance(row, dict) else None for key in ("input", "response")]
        problem, response = (text if isinstance(text, str) else "" for text in texts)
        if not problem or not response:
            raise ConfigError(f"--few-shot: {where}: needs the texts 'input' and 'response', not {str(row)[:80]}")
        turns += [Message(role="user", content=wrap(problem)), Message(role="assistant", content=response)]
    if not turns:
        raise ConfigError(f"--few-shot: {source.name} holds no examples")
    return tuple(turns)
