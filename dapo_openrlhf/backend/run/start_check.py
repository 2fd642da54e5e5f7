"""Checks before the first step that the trainer and the engines compute the same policy (runs in the controller).

Each engine samples responses to a few short random prompts of unequal length. The trainer scores them packed, as in
training, and also with the model's own forward pass in transformers; see :mod:`agreement`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from dapo_openrlhf.backend.messages import Agreement, Difference, GroupTokens
from dapo_openrlhf.backend.run.calls import all_within
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine
from dapo_openrlhf.config.settings import Config

PROMPT_LENGTHS = (40, 23, 11, 4)
"""Number of tokens of each prompt; smaller where ``data.max_len`` is short."""

NEW_TOKENS = 12
"""Maximum number of tokens of each response."""

ROUNDINGS = 8.0
"""A difference may be this many times what one more rounding error in each linear layer changes in the
log-probabilities."""

LARGEST_TO_MEAN = 16.0
"""How many times the tolerated mean difference a single difference may be."""


class PoliciesDiffer(RuntimeError):
    """The trainer's policy is not the model's or an engine's; the message says which differs, and where that begins."""


async def check_agreement(config: Config, engines: Sequence[RemoteEngine], ranks: Sequence[Any]) -> str:
    """Compare the policies, and return a message for the user. Raises :class:`PoliciesDiffer`."""
    started = time.monotonic()
    new_tokens = max(1, min(NEW_TOKENS, config.data.max_len // 2))
    lengths = [max(1, min(length, config.data.max_len - new_tokens)) for length in PROMPT_LENGTHS]
    names = [f"engine {index}" for index in range(len(engines))]
    calls = [engine.actor.sample_random.remote(lengths, new_tokens, config.rollout.temperature) for engine in engines]
    samples: list[list[GroupTokens]] = await _answers(config, calls, names)
    found: Agreement = (await _of_ranks(config, ranks, "compare", samples))[0]
    if not tolerable(found, found.packed):
        where = (await _of_ranks(config, ranks, "where_packed_differs", samples[0]))[0]
        raise PoliciesDiffer(refusal_of_packed(found, where))
    for name, difference in zip(names, found.engines, strict=True):
        if not tolerable(found, difference):
            raise PoliciesDiffer(refusal_of_engine(found, name, difference))
    worst = max(found.engines, key=lambda difference: difference.mean)
    return (
        f"engines and trainer agree: log-probs differ by {worst.mean:.1g} on average, {worst.largest:.1g} at most "
        f"(compared in {time.monotonic() - started:.1f} s)"
    )


async def _of_ranks(config: Config, ranks: Sequence[Any], method: str, samples: Any) -> list[Any]:
    names = [f"trainer rank {index}" for index in range(len(ranks))]
    return await _answers(config, [getattr(rank, method).remote(samples) for rank in ranks], names)


async def _answers(config: Config, calls: Sequence[Any], names: Sequence[str]) -> list[Any]:
    what = "comparing engines and trainer"
    return await all_within(calls, names, config.async_.start_timeout, what, "async.start_timeout")


def tolerance(found: Agreement) -> Difference:
    """The differences that the data type explains.

    They are :data:`ROUNDINGS` times the effect of one more rounding error in each linear layer, so that a model that
    magnifies errors is not blamed for it, but at least half of the type's digits: 3e-4 in float32, 0.09 in bfloat16.
    """
    half = math.sqrt(found.eps)
    return Difference(
        mean=max(half, ROUNDINGS * found.rounding.mean),
        largest=max(LARGEST_TO_MEAN * half, ROUNDINGS * found.rounding.largest),
    )


def tolerable(found: Agreement, difference: Difference) -> bool:
    """Whether the data type explains a difference."""
    limit = tolerance(found)
    return difference.mean <= limit.mean and difference.largest <= limit.largest  # false for NaN


def refusal_of_packed(found: Agreement, where: str) -> str:
    """The error message if the trainer's packed forward pass is at fault."""
    return (
        f"{found.architecture}: the trainer's packed forward pass is not the model's own: log-probs differ by "
        f"{_words(found.packed)}, of which the data type explains {_words(tolerance(found))}; {where}. This family cannot "
        "be trained here as it is: another ds.attn_implementation may do, and train.check_agreement false trains it "
        "nevertheless, on a policy that does not sample"
    )


def refusal_of_engine(found: Agreement, name: str, difference: Difference) -> str:
    """The error message if the trainer computes what transformers does, and vLLM does not."""
    return (
        f"{found.architecture}: {name} differs from the trainer: the log-probs of what it sampled differ by "
        f"{_words(difference)}, of which the data type explains {_words(tolerance(found))}, while the trainer's are those "
        "of the model's own forward pass in transformers. vLLM reads the model's folder otherwise, or does not know a part "
        "of this family; compare config.json with a published model's. train.check_agreement false trains it nevertheless, "
        "on a policy that does not sample"
    )


def _words(difference: Difference) -> str:
    return f"{difference.mean:.2g} on average and {difference.largest:.2g} at most"
