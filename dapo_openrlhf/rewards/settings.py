"""What a reward process is started with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dapo_openrlhf.config.choices import AnswerForm
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.reward_origin import PythonFile, RewardOrigin, Rule, origin_of

if TYPE_CHECKING:  # a reward process need not wait for pydantic
    from dapo_openrlhf.config.reward import RewardSection


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """One or several rewards and the limits they are computed under."""

    sources: tuple[RewardOrigin, ...] = (Rule(),)
    """Files by their absolute paths; the first decides on right."""
    weights: tuple[float, ...] = (1.0,)
    """One for each source; the weighted sum is the reward."""
    answer_form: AnswerForm = "any"
    """``any`` or ``number``: how the rule wants an answer to a number written."""
    correct_from: float = 1.0
    """Scores of a file or an endpoint from here on are right answers."""
    timeout: float = 5.0
    """Seconds one response may take."""
    batch_size: int | None = 1
    """Responses of a group that a reward is asked about at once; None asks about all."""
    memory: int = 1024
    """MiB the process may take beyond what it holds once everything is loaded."""

    def to_json(self) -> str:
        """For :meth:`from_json` in the reward process."""
        return json.dumps(asdict(self) | {"sources": [source.name for source in self.sources]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that :meth:`to_json` has written down."""
        values = json.loads(text)
        sources, weights = map(origin_of, values.pop("sources")), values.pop("weights")
        return cls(sources=tuple(sources), weights=tuple(weights), **values)


def reward_settings(reward: RewardSection) -> RewardSettings:
    """A reward process as the configuration says. Raises ``ConfigError`` for a file that is not there."""
    return RewardSettings(
        sources=tuple(map(_found, reward.origins)),
        weights=reward.weights or (1.0,) * len(reward.origins),
        answer_form=reward.answer_form,
        correct_from=reward.correct_from,
        timeout=reward.timeout,
        batch_size=reward.batch_size,
        memory=reward.memory,
    )


def _found(origin: RewardOrigin) -> RewardOrigin:
    """A file as every process finds it."""
    if not isinstance(origin, PythonFile):
        return origin
    if not Path(origin.path).is_file():
        raise ConfigError(f"reward.remote_url: there is no file {origin.path}")
    return PythonFile(str(Path(origin.path).resolve()))
