"""Reads the replies of a user's function or a reward server, in OpenRLHF's forms (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dapo_openrlhf.types import Score

LARGEST_REWARD = 1e6
"""Largest absolute reward; beyond it squares, and sums of them over a batch, might not be finite in float32."""

TEXTS = (str, bytes, bytearray, memoryview)
"""Sequences that are no lists of numbers."""
MOST_LOGS = 64
LONGEST_EXCERPT = 80


class BadReply(ValueError):
    """A reply cannot be used as scores; the message says what is wrong with it."""


def read_reply(reply: object, correct_from: float, count: int = 1) -> list[Score]:
    """Read the scores of ``count`` responses from a reply.

    ``rewards`` are trained; ``scores``, or the rewards without them, decide which answers are right; ``extra_logs`` are
    passed on as numbers. Each is a number, or one number per response in a list, tuple, array or tensor of any shape.
    Raises :class:`BadReply`.
    """
    if not isinstance(reply, Mapping) or reply.get("rewards") is None:
        raise BadReply(f"answered {excerpt(reply)}, not a mapping with 'rewards'")
    rewards = [sensible(number) for number in _numbers(reply["rewards"], count, "rewards")]
    scored = reply.get("scores")
    given = None if scored is None else _numbers(scored, count, "scores")
    logs = _logs(reply.get("extra_logs"), count)
    return [
        Score(
            correct=(reward if given is None else given[index]) >= correct_from,
            reward=reward,
            score=None if given is None else given[index],
            logs={name: values[index] for name, values in logs.items()},
        )
        for index, reward in enumerate(rewards)
    ]


def sensible(reward: float) -> float:
    """Return the reward. Raises :class:`BadReply` for one that must not be trained."""
    if not math.isfinite(reward):
        raise BadReply(f"the reward {reward} is no finite number")
    if abs(reward) > LARGEST_REWARD:
        raise BadReply(f"the reward {reward:g} is beyond what a reward may be, {LARGEST_REWARD:g} either way")
    return reward


def _numbers(value: Any, count: int, name: str) -> list[float]:
    """Read ``count`` numbers from a number, a list of any nesting, an array or a tensor. Raises :class:`BadReply`."""
    numbers: list[float] = []
    _flatten(value, numbers, name)
    if len(numbers) != count:
        asked = "one response was" if count == 1 else f"{count} responses were"
        raise BadReply(f"{asked} asked about, {len(numbers)} {name} were answered")
    for number in numbers:
        if math.isnan(number):
            raise BadReply(f"{name}: nan is no finite number")
    return numbers


def _flatten(value: Any, numbers: list[float], name: str) -> None:
    if hasattr(value, "tolist") and not isinstance(value, memoryview):  # numpy's and torch's arrays and scalars
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, TEXTS):
        for item in value:
            _flatten(item, numbers, name)
        return
    if value is None or isinstance(value, (*TEXTS, Mapping)):
        raise BadReply(f"{name}: {excerpt(value)} is no number")
    try:
        numbers.append(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadReply(f"{name}: {excerpt(value)} is no number ({error})") from error


def _logs(logs: object, count: int) -> dict[str, list[float]]:
    """Numbers by name and response. Values that are not finite numbers are left out, since they do not affect
    rewards."""
    found: dict[str, list[float]] = {}
    if not isinstance(logs, Mapping):
        return found
    for name, value in logs.items():
        try:
            numbers: list[float] = []
            _flatten(value, numbers, str(name))
        except (BadReply, RecursionError):
            continue
        if len(numbers) == 1:
            numbers *= count
        if len(numbers) == count and all(map(math.isfinite, numbers)) and len(found) < MOST_LOGS:
            found[str(name)] = numbers
    return found


def excerpt(value: object) -> str:
    """The beginning of the representation of a value."""
    try:
        words = repr(value)
    except Exception as error:  # a user's object may raise anything
        words = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return words if len(words) <= LONGEST_EXCERPT else words[:LONGEST_EXCERPT] + "..."
