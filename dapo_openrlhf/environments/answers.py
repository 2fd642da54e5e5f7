"""What environments answer, checked before it leaves their process (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dapo_openrlhf.environments.messages import Observation, Step
from dapo_openrlhf.rewards.replies import BadReply, excerpt, sensible

LONGEST_TEXT = 1_000_000
"""Most characters of one observation; no model's context is as long."""
MOST_LOGS = 64


class BadAnswer(ValueError):
    """An environment's answer cannot be used; the message says why and what would be right."""


def checked_observation(answer: object) -> Observation:
    """Return what ``reset`` has answered. Raises :class:`BadAnswer`."""
    if not isinstance(answer, Observation):
        raise BadAnswer(f"reset() answered {excerpt(answer)}; it must answer an Observation")
    if answer.text is None:
        return answer
    return Observation(text=text_of(answer.text, "reset(): text"))


def checked_step(answer: object) -> Step:
    """Return what ``step`` has answered, with logs that are no finite numbers left out. Raises :class:`BadAnswer`."""
    if not isinstance(answer, Step):
        raise BadAnswer(f"step() answered {excerpt(answer)}; it must answer a Step")
    try:
        reward = sensible(_number(answer.reward, "reward"))
    except BadReply as error:
        raise BadAnswer(f"step(): {error}") from None
    most = answer.max_new_tokens
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise BadAnswer(f"step(): max_new_tokens is {excerpt(most)}; it must be a whole number from 1, or None")
    temperature = None if answer.temperature is None else _number(answer.temperature, "temperature")
    if temperature is not None and not (0 <= temperature < math.inf):
        raise BadAnswer(f"step(): temperature is {temperature:g}; it must be at least 0, or None")
    if not isinstance(answer.done, bool):
        raise BadAnswer(f"step(): done is {excerpt(answer.done)}; it must be True or False")
    return Step(
        observation=text_of(answer.observation, "step(): observation"),
        reward=reward,
        score=None if answer.score is None else _finite(answer.score, "score"),
        done=answer.done,
        logs=_logs(answer.logs),
        max_new_tokens=most,
        temperature=temperature,
    )


def text_of(value: object, name: str) -> str:
    """Return a text that a tokenizer can take. Raises :class:`BadAnswer`."""
    if not isinstance(value, str):
        raise BadAnswer(f"{name} is {excerpt(value)}; it must be a string")
    if len(value) > LONGEST_TEXT:
        raise BadAnswer(
            f"{name} has {len(value):,} characters; more than {LONGEST_TEXT:,} fit no context, so shorten it"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadAnswer(
            f"{name} has half a character ({excerpt(value[error.start : error.start + 1])} at {error.start}), which no "
            "tokenizer takes: decode it with errors='replace'"
        ) from None
    return str(value)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    raise BadAnswer(f"step(): {name} is {excerpt(value)}; it must be a number")


def _finite(value: object, name: str) -> float:
    number = _number(value, name)
    if not math.isfinite(number):
        raise BadAnswer(f"step(): {name} is {number}; it must be a finite number")
    return number


def _logs(logs: object) -> dict[str, float]:
    if not isinstance(logs, Mapping):
        raise BadAnswer(f"step(): logs is {excerpt(logs)}; it must be a mapping of names to numbers")
    numbers = {str(name): float(value) for name, value in logs.items() if isinstance(value, bool | int | float)}
    finite = [(name, value) for name, value in numbers.items() if math.isfinite(value)]
    return dict(finite[:MOST_LOGS])
