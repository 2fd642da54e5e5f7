"""Settings of rewards, and what they must agree with among themselves (pydantic)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from dapo_openrlhf.config.choices import AnswerForm
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.reward_origin import RewardOrigin, Rule, origin_of, refusals
from dapo_openrlhf.config.section import PositiveFloat, PositiveInt, Section, listed


def _rewards(value: object) -> object:
    """The rewards as a list; null stands for the rule."""
    return listed(Rule().name if value is None else value)


class RewardSection(Section):
    remote_url: Annotated[tuple[str, ...], BeforeValidator(_rewards), Field(strict=False, min_length=1)] = (
        Rule().name,
    )
    """One or several of: ``rule`` (eq. 7); a Python file with ``reward_func(queries, prompts, labels)`` as OpenRLHF takes
    it; an http(s) address that speaks OpenRLHF's remote reward protocol. The first decides which answers are right."""
    weights: Annotated[tuple[FiniteFloat, ...], BeforeValidator(listed), Field(strict=False)] | None = None
    """One weight for each reward: the weighted sum of the rewards is trained; null gives each the weight 1."""
    answer_form: AnswerForm = "any"
    """What the rule accepts as an answer where the label is a number: ``any`` expression of that value, or only a
    ``number``, so that ``17*23`` and ``782/2`` are not accepted for 391."""
    correct_from: FiniteFloat = 1.0
    """Lowest score by a file or an endpoint (its reward, if it gives no ``scores``) that counts as a right answer."""
    num_workers: PositiveInt = 1
    """Number of reward worker processes."""
    timeout: PositiveFloat = 5.0
    """Seconds the scoring of one response may take before its process is killed and replaced."""
    batch_size: PositiveInt | Literal["auto"] | None = "auto"
    """Number of a group's responses that a file or a server is given in one call, which may take ``timeout`` for each
    of them. ``auto`` gives a file 1, as OpenRLHF does, and a server the whole group; null gives either the whole group. A
    function or a server that looks only at the first query needs 1."""
    server_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Seconds that a reward server may be unavailable (refused or broken connections, HTTP 429, 502, 503, 504, no
    answer within ``timeout``) before the run ends. It is asked again with growing pauses; generated responses wait
    meanwhile."""
    memory: PositiveInt = 1024
    """MiB of memory that scoring may take in one process, beyond what the process has once the rewards are loaded."""
    max_attempts: PositiveInt = 3
    """A prompt whose groups could not be scored this many times in a row is dropped instead of tried again."""
    overlong_buffer_len: Annotated[int, Field(ge=0)] | None = None
    """L_cache of the soft overlong punishment (eq. 13), in tokens; null or 0 switches it off."""
    overlong_penalty_factor: PositiveFloat = PAPER["reward.overlong_penalty_factor"]
    """Factor of the soft overlong punishment."""
    stop_properly_penalty_coef: Annotated[float, Field(le=1)] | None = None
    """What becomes of a truncated response's reward, after the soft punishment: times this from 0 to 1; or this itself, if
    it is negative; null leaves it (ProRL, as in OpenRLHF)."""
    clip_range: Annotated[tuple[FiniteFloat, FiniteFloat], Field(strict=False)] | None = None
    """LOW HIGH bounds of a response's credit, after the baseline; null for none."""
    overlong_filtering_enable: bool = PAPER["reward.overlong_filtering_enable"]
    """Overlong filtering: truncated responses are excluded from the loss."""

    @property
    def by_rule(self) -> bool:
        """Whether the rule is the only reward, which is also what is set where nobody has chosen."""
        return self.remote_url == (Rule().name,)

    @property
    def origins(self) -> tuple[RewardOrigin, ...]:
        """The rewards that ``remote_url`` names."""
        return tuple(map(origin_of, self.remote_url))

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if problems := list(_impossible(self)):
            raise ConfigError("\n".join(problems))
        return self


def _impossible(reward: RewardSection) -> Iterator[str]:
    """Yield a sentence for each combination of reward settings that cannot run."""
    for name in reward.remote_url:
        for problem in refusals(name):
            yield f"reward.remote_url: {problem}"
    if reward.clip_range is not None and not reward.clip_range[0] < reward.clip_range[1]:
        low, high = reward.clip_range
        yield f"reward.clip_range: {low:g} {high:g} is not a range; use LOW < HIGH, such as -10 10"
    if reward.weights is not None and len(reward.weights) != len(reward.remote_url):
        yield (
            f"reward.weights: {len(reward.weights)} weights for {len(reward.remote_url)} rewards in reward.remote_url; "
            "give one for each"
        )
