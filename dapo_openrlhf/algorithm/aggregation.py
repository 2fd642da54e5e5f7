"""The weight of each token in an update's loss (pure Python: it sees lengths only).

Every aggregation is a weighted sum of token losses. The weights depend on the whole update and are fixed before it is
cut, so the loss and its gradient do not depend on how it is cut into ranks and micro-batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import assert_never

from dapo_openrlhf.algorithm.choices import LossAggMode


def token_weights(groups: Sequence[int], tokens: Sequence[int], *, mode: LossAggMode, longest: int) -> list[float]:
    """For each response of an update, the weight of each of its trained tokens.

    ``groups`` says which prompt a response belongs to, ``tokens`` how many tokens it trains (0 for a masked one);
    ``longest`` is the longest response allowed. N counts the responses with trained tokens, |o_i| their tokens.

    * ``token-mean``: ``1 / sum_j |o_j|``, DAPO eq. 12.
    * ``seq-mean-token-mean``: ``1 / (N |o_i|)``, GRPO eq. 3 (DAPO eq. 5).
    * ``prompt-mean-token-mean``: one over the prompt's tokens and the number of prompts: DAPO eq. 8 to the letter,
      whose mean over tokens stands inside the expectation over prompts. A prompt's tokens in other updates do not
      count.
    * ``seq-mean-token-sum-norm``: ``1 / (N longest)``, a constant: Dr. GRPO (arXiv 2503.20783, section 3.2).
    """
    total, responses = sum(tokens), sum(count > 0 for count in tokens)
    match mode:
        case "token-mean":
            return [1 / total if count else 0.0 for count in tokens]
        case "seq-mean-token-mean":
            return [1 / (responses * count) if count else 0.0 for count in tokens]
        case "seq-mean-token-sum-norm":
            return [1 / (responses * longest) if count else 0.0 for count in tokens]
        case "prompt-mean-token-mean":
            return _prompt_means(groups, tokens)
        case _:
            assert_never(mode)


def _prompt_means(groups: Sequence[int], tokens: Sequence[int]) -> list[float]:
    of_prompt: Counter[int] = Counter()
    for group, count in zip(groups, tokens, strict=True):
        of_prompt[group] += count
    prompts = sum(count > 0 for count in of_prompt.values())
    return [1 / (prompts * of_prompt[group]) if count else 0.0 for group, count in zip(groups, tokens, strict=True)]
