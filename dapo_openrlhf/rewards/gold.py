"""Extracts the right answer from a row's label.

Everything that needs a gold answer uses this: the rule reward, ``train`` and ``eval`` when they read rows, ``prepare``,
``verify``. A user's own reward gets the label unchanged.
"""

from __future__ import annotations

import json
import math
import re

from dapo_openrlhf.rewards.verifier import extract_answer

MARK = "####"
"""The mark before the answer in GSM8K's solutions."""

MOST_WORDS = 20
"""Most words of an answer; text with more words, or several sentences, is a solution."""

EXACT = 2**53
"""Bound below which a float without a fraction is exactly that integer."""

_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCES = re.compile(r"[a-z)$}\d][.!?]\s+[A-Z]")


def gold_answer(label: object) -> str:
    """The answer that the rule reward compares with, from a text, a number, or a list with one of them.

    In a whole solution it is the content of the last box, or what follows GSM8K's last ``####``. Raises ``ValueError``
    that says what is wrong with a label that is not an answer.
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
            return str(int(label)) if label.is_integer() and abs(label) < EXACT else str(label)
        case [item]:
            return gold_answer(item)
        case list():
            raise ValueError(f"a list of {len(label)} answers, of which the reward takes one; give text or a number")
        case _:
            raise ValueError(f"{type(label).__name__} is no answer; give text or a number")


def _of_text(text: str) -> str:
    if not text:
        raise ValueError("empty; give text or a number")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds {error.object[error.start]!r}, half of a character") from error
    if text[0] + text[-1] in ("[]", "{}"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text  # an interval, a set, LaTeX
        if isinstance(value, dict) and value:
            raise ValueError("a mapping as JSON is no answer; give text or a number")
        if isinstance(value, list) and (len(value) == 1 or any(isinstance(item, str) for item in value)):
            return gold_answer(value)
        return text
    return _of_solution(text)


def _of_solution(text: str) -> str:
    """The answer in a text that may be a whole solution."""
    answer: str | None
    if MARK in text:
        answer, why = text.rpartition(MARK)[2].strip(), f"nothing follows its last {MARK}"
    elif boxes := list(_BOX.finditer(text)):
        box = text[boxes[-1].start() :]
        answer, why = extract_answer(box), f"its last box is empty or not closed: {box[:60]!r}"
    elif _is_solution(text):
        answer, why = extract_answer(text), f"reads like a whole solution, with no \\boxed answer: {text[:60]!r}"
    else:
        return text
    if not answer:
        raise ValueError(f"{why}; give the answer alone")
    return answer


def _is_solution(text: str) -> bool:
    words = len(_WORD.findall(text))
    return words > MOST_WORDS or (words > 5 and bool(_SENTENCES.search(text))) or "answer:" in text.casefold()
