"""Settings of rewards, and what they must agree with among themselves (pydantic)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from dapo_openrlhf.config.choices import AnswerForm
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import PositiveFloat, PositiveInt, Section, listed


def _rewards(value: object) -> object:
    """As a list, in which null stands for the rule."""
    return listed("rule" if value is None else value)


class RewardSection(Section):
    remote_url: Annotated[tuple[str, ...], BeforeValidator(_rewards), Field(strict=False, min_length=1)] = ("rule",)
    """One or several of: ``rule`` (eq. 7); a Python file with ``reward_func(queries, prompts, labels)`` as OpenRLHF takes
    it; an http(s) address that speaks OpenRLHF's remote reward protocol. The first decides which answers are right."""
    weights: Annotated[tuple[FiniteFloat, ...], BeforeValidator(listed), Field(strict=False)] | None = None
    """One for each reward: their weighted sum is trained; null weighs each with 1."""
    answer_form: AnswerForm = "any"
    """What the rule takes for an answer to a label that is a number: ``any`` expression of that value, or a ``number``
    only, so that ``17*23`` and ``782/2`` are no answers to 391."""
    correct_from: FiniteFloat = 1.0
    """A file's or an endpoint's score (its reward, if it gives no ``scores``) of at least this counts as a right answer."""
    num_workers: PositiveInt = 1
    """Reward worker processes."""
    timeout: PositiveFloat = 5.0
    """Seconds the judging of one response may take before its process is killed and replaced."""
    batch_size: PositiveInt | None = 1
    """Responses of a group that a file or a server is given in one call, which has ``timeout`` for each of them. OpenRLHF
    gives 1; null gives the whole group. A function that only ever looks at ``queries[0]`` needs 1."""
    server_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Seconds that a reward server may be away (refused or broken connections, HTTP 429, 502, 503, 504, no answer within
    ``timeout``) before the run ends. It is asked again with growing pauses; what was generated waits."""
    memory: PositiveInt = 1024
    """MiB that judging may take in one process, beyond what it has once the rewards are loaded."""
    max_attempts: PositiveInt = 3
    """A prompt whose groups could not be scored this many times in a row is dropped instead of tried again."""
    overlong_buffer_len: Annotated[int, Field(ge=0)] | None = None
    """L_cache of the soft overlong punishment (eq. 13), in tokens; null or 0 switches it off."""
    overlong_penalty_factor: PositiveFloat = PAPER["reward.overlong_penalty_factor"]
    """Scales the soft overlong punishment."""
    overlong_filtering_enable: bool = PAPER["reward.overlong_filtering_enable"]
    """Overlong filtering: truncated responses carry no loss."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if problems := list(_impossible(self)):
            raise ConfigError("\n".join(problems))
        return self


def _impossible(reward: RewardSection) -> Iterator[str]:
    """Yield a sentence for each combination of reward settings that cannot run."""
    for name in reward.remote_url:
        if name != "rule" and not name.endswith(".py") and not re.match(r"https?://[^/]", name):
            yield (
                f"reward.remote_url: {name} is no reward; give rule, a Python file that ends in .py, or an http(s) address"
            )
        if re.search(r",https?://|\.py,", name):
            yield (
                f"reward.remote_url: {name}: OpenRLHF asks addresses with a comma between them in turn; here several are "
                "rewards of which the weighted sum is trained, given as a list; give one address, with a balancer behind it "
                "if need be"
            )
    if reward.weights is not None and len(reward.weights) != len(reward.remote_url):
        yield (
            f"reward.weights: {len(reward.weights)} weights for {len(reward.remote_url)} rewards in reward.remote_url; "
            "give one for each"
        )
