"""What environments answer, checked before it leaves their process (standard library only)."""

from __future__ import annotations

import math
import operator
from typing import SupportsFloat, SupportsIndex

from dapo_openrlhf.environments.messages import Observation, Step
from dapo_openrlhf.rewards.replies import BadReply, excerpt, read_reply

LONGEST_TEXT = 1_000_000
"""Most characters of one observation; no model's context is as long."""
LONGEST_NAME = 100
NO_CORRECTNESS = 0.0
"""Where a reply is read as that of a reward, which answers are right is not decided here."""


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
    """Return what ``step`` has answered, with logs that are no finite numbers left out. Raises :class:`BadAnswer`.

    Numbers and truths may be numpy's or torch's too.
    """
    if not isinstance(answer, Step):
        raise BadAnswer(f"step() answered {excerpt(answer)}; it must answer a Step")
    try:
        reply = {"rewards": answer.reward, "scores": answer.score, "extra_logs": answer.logs}
        (score,) = read_reply(reply, NO_CORRECTNESS)
    except BadReply as error:
        raise BadAnswer(f"step(): {error}") from None
    if score.score is not None and not math.isfinite(score.score):
        raise BadAnswer(f"step(): score is {score.score}; it must be a finite number")
    return Step(
        observation=text_of(answer.observation, "step(): observation"),
        reward=score.reward,
        score=score.score,
        done=truth_of(answer.done),
        logs={name[:LONGEST_NAME]: value for name, value in score.logs.items()},
        max_new_tokens=_limit(answer.max_new_tokens),
        temperature=_temperature(answer.temperature),
    )


def truth_of(done: object) -> bool:
    """Whether a rollout is done. Raises :class:`BadAnswer` for what is neither true nor false."""
    if isinstance(done, str | bytes) or done is None:
        raise BadAnswer(f"step(): done is {excerpt(done)}; it must be True or False")
    try:
        return bool(done)
    except (ValueError, RuntimeError, TypeError) as error:  # an array of several
        raise BadAnswer(f"step(): done is {excerpt(done)}; it must be True or False") from error


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


def _limit(most: object) -> int | None:
    if most is None:
        return None
    if not isinstance(most, SupportsIndex) or isinstance(most, bool) or operator.index(most) < 1:
        raise BadAnswer(f"step(): max_new_tokens is {excerpt(most)}; it must be a whole number from 1, or None")
    return operator.index(most)


def _temperature(given: object) -> float | None:
    if given is None:
        return None
    if not isinstance(given, SupportsFloat) or not 0 <= float(given) < math.inf:
        raise BadAnswer(f"step(): temperature is {excerpt(given)}; it must be a number from 0, or None")
    return float(given)
