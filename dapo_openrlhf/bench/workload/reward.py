"""The reward of the benchmark, in the form of OpenRLHF's file rewards, which both sides load (standard library).

The label of a prompt is its kind: every response to a ``right`` prompt is right, none to a ``wrong`` one, and to a
``mixed`` one those whose text has an even checksum, which are about half, whatever the model writes. So the share of
groups that dynamic sampling keeps is set by the prompts and stays the same in training.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

END = "<eos>"
"""The end token as the tokenizer writes it; whether a caller leaves it in must not change the score."""


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **kwargs: object
) -> dict[str, float | list[float]]:
    """Scores, 0.0 or 1.0, of responses: ``queries`` are prompts with responses, ``prompts`` the prompts alone.

    OpenRLHF 0.11.2 passes one response per call and makes a tensor of ``[result["rewards"]]``: for one response the
    values are numbers, for several they are lists.
    """
    texts = zip(queries, prompts, labels, strict=True)
    scores = [score(query.removeprefix(prompt).removesuffix(END), label) for query, prompt, label in texts]
    value = scores[0] if len(scores) == 1 else scores
    return {"rewards": value, "scores": value}


def score(response: str, label: str) -> float:
    """The score: 1.0 for a right response, 0.0 for a wrong one. Raises ``ValueError`` for an unknown label."""
    if label == "mixed":
        return float(zlib.crc32(response.encode()) % 2 == 0)
    if label not in ("right", "wrong"):
        raise ValueError(f"label {label!r} is none of right, wrong, mixed")
    return float(label == "right")
