"""A prompt that cannot be scored is tried again, and given up in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dapo_openrlhf.pipeline.ports import GroupError
from dapo_openrlhf.pipeline.reward_attempts import LimitedAttempts
from dapo_openrlhf.types import Prompt, Score

GOOD = (Score(correct=True, reward=1.0),)
FIRST, SECOND = (Prompt(id=number, text=f"{number}+1=", label=str(number + 1)) for number in (0, 1))


class Scripted:
    """Fails where the script says so; raises ``StopIteration`` when asked more often."""

    def __init__(self, script: Iterator[bool]) -> None:
        self._script = script

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        if next(self._script):
            return GOOD
        raise GroupError("reward_timeout", "late")


def outcomes(script: list[bool], prompts: list[Prompt], *, most: int) -> list[bool | None]:
    """For each scoring: None when scored, else whether the error was permanent."""
    scorer = LimitedAttempts(Scripted(iter(script)), most=most)
    found: list[bool | None] = []
    for prompt in prompts:
        try:
            assert asyncio.run(scorer.score("texts", prompt)) == GOOD
            found.append(None)
        except GroupError as error:
            assert error.reason == "reward_timeout" and "late" in str(error)
            assert error.permanent == ("prompt 0 is dropped after" in str(error))
            found.append(error.permanent)
    return found


def test_the_last_failure_in_a_row_is_permanent() -> None:
    assert outcomes([False] * 4, [FIRST] * 4, most=3) == [False, False, True, True]
    assert outcomes([False], [FIRST], most=1) == [True]


def test_a_success_starts_afresh() -> None:
    assert outcomes([False, False, True, False, False], [FIRST] * 5, most=3) == [False, False, None, False, False]


def test_prompts_are_counted_apart() -> None:
    assert outcomes([False] * 4, [FIRST, SECOND, FIRST, SECOND], most=3) == [False] * 4


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError):  # a coroutine turns StopIteration into it
        outcomes([], [FIRST], most=3)
