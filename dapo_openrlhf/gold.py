"""What a row's label says is the right answer (layer 0: standard library only)."""

from __future__ import annotations

import json
import math


def gold_answer(label: object) -> str:
    """The answer that the rule reward compares with, out of a row's label: text, a number, or a list of one of them.

    Raises ``ValueError`` that says what is wrong with a label that is no answer.
    """
    match label:
        case str():
            return _of_text(label.strip())
        case bool() | None:
            raise ValueError(f"{label!r} is no answer; give text or a number")
        case int():
            return str(label)
        case float():
            if not math.isfinite(label):
                raise ValueError(f"{label} is no number; give text or a number")
            return str(int(label)) if label.is_integer() else str(label)
        case [item]:
            return gold_answer(item)
        case list():
            raise ValueError(f"a list of {len(label)} answers; give one")
        case _:
            raise ValueError(f"{type(label).__name__} is no answer; give text or a number")


def _of_text(text: str) -> str:
    if not text:
        raise ValueError("empty; give text or a number")
    if text.startswith("[") and text.endswith("]"):
        try:
            items = json.loads(text)
        except ValueError:
            return text
        if isinstance(items, list) and len(items) == 1 and isinstance(items[0], str):
            return gold_answer(items[0])
    return text
