"""Gold answers in the form in which the verifier compares texts."""

from __future__ import annotations

import functools
import re

from dapo_openrlhf.rewards import verifier

_INTEGER = re.compile(r"[-+]?\d+")


@functools.lru_cache(maxsize=1 << 16)
def canonical(label: str) -> str:
    """The common form of all ways to write an answer that the verifier considers the same."""
    return verifier.answer_key(label)


def is_integer(label: str) -> bool:
    """Whether an answer is an integer."""
    return _INTEGER.fullmatch(canonical(label)) is not None
