"""The benchmark's reward, in the form of OpenRLHF's file rewards: both sides load it (standard library).

A prompt's label says what kind it is: every response of a ``right`` prompt is right, none of a ``wrong`` one,
and of a ``mixed`` one those whose text has an even checksum: about half, whatever the model says. So the
share of groups that dynamic sampling keeps is set by the prompts and stays the same in training.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

END = "<eos>"
"""The end token as the tokenizer writes it; whether a caller leaves it in must not change the score."""


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **kwargs: object
) -> dict[str, float | list[float]]:
    """Scores, 0.0 or 1.0, of responses: ``queries`` are prompt and response, ``prompts`` how each begins.

    OpenRLHF 0.11.2 hands over one response a call and makes a tensor of ``[result["rewards"]]``: for one
    response the values are numbers, for several they are lists.
    """
    texts = zip(queries, prompts, labels, strict=True)
    scores = [score(query.removeprefix(prompt).removesuffix(END), label) for query, prompt, label in texts]
    value = scores[0] if len(scores) == 1 else scores
    return {"rewards": value, "scores": value}


def score(response: str, label: str) -> float:
    """1.0 for a right response, 0.0 for a wrong one. Raises ``ValueError`` for an unknown label."""
    if label == "mixed":
        return float(zlib.crc32(response.encode()) % 2 == 0)
    if label not in ("right", "wrong"):
        raise ValueError(f"label {label!r} is none of right, wrong, mixed")
    return float(label == "right")
