"""Reads the turns of a chat from the prompt of a row."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from dapo_openrlhf.dataset.bad_rows import BadRow

Turn: TypeAlias = dict[str, Any]
"""A turn: ``role``, ``content``, and whatever else the chat template may use, such as ``tool_calls``."""

ROLES = ("system", "developer", "user", "assistant", "tool")


def chat_list(value: object) -> list[Any] | None:
    """The value of a prompt as a chat list: a list, or text that is the JSON of one; None for other text.

    Raises :class:`BadRow` for a value that is neither.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise BadRow("prompt", f"the prompt is {type(value).__name__}, neither text nor a chat list")
    if value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]":
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            return None
        if (
            isinstance(items, list)
            and items
            and all(isinstance(i, dict) and {"role", "content"} <= i.keys() for i in items)
        ):
            return items
    return None


def to_be_answered(chat: list[Any]) -> tuple[list[Turn], bool]:
    """The turns up to the last one that the model is to answer, and whether an answer by the assistant was cut off.

    Raises :class:`BadRow` for a value that is not a chat of texts, and for a chat in which nothing is asked.
    """
    turns = [_turn(item) for item in chat]
    asked = len(turns)
    while asked and turns[asked - 1]["role"] == "assistant":
        asked -= 1
    if not any(turn["role"] == "user" for turn in turns[:asked]):
        raise BadRow("chat", "the chat has no turn of the role 'user' to be answered")
    if turns[asked - 1]["role"] not in ("user", "tool"):
        raise BadRow("chat", f"the chat ends in a turn of the role {turns[asked - 1]['role']!r}; end it in the user's")
    return turns[:asked], asked < len(turns)


def _turn(item: object) -> Turn:
    if not isinstance(item, dict):
        raise BadRow("chat", f"{_short(item)} is no turn of a chat; it needs the texts 'role' and 'content'")
    turn = {name: value for name, value in item.items() if value is not None}  # tables fill missing entries with null
    role = turn.get("role")
    if not isinstance(role, str):
        hint = "; 'from' and 'value' are named 'role' and 'content' here" if "from" in turn and "value" in turn else ""
        raise BadRow("chat", f"{_short(item)} is no turn of a chat; it needs the texts 'role' and 'content'{hint}")
    if role not in ROLES:
        raise BadRow("chat", f"a turn has the role {role!r}; give one of {', '.join(ROLES)}")
    if "content" in turn:
        turn["content"] = _text(turn["content"])
    elif not turn.get("tool_calls"):
        raise BadRow("chat", f"{_short(item)} is no turn of a chat; it needs the texts 'role' and 'content'")
    return turn


def _text(content: object) -> str:
    """The text of a turn, with its parts joined where it has several."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("chat", f"a turn's content is {type(content).__name__}, not text")
    texts = []
    for part in content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        if kind not in (None, "text"):
            raise BadRow("chat", f"a turn's content has a part of the type {kind!r}; only text is trained on")
        if not isinstance(text, str):
            raise BadRow("chat", f"{_short(part)} is no part of a turn's content; it needs 'type' and 'text'")
        texts.append(text)
    return "".join(texts)


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
