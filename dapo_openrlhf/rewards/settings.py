"""The settings of a reward process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dapo_openrlhf.config.choices import AnswerForm
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.reward_origin import PythonFile, RewardOrigin, Rule, Server, origin_of

if TYPE_CHECKING:  # a reward process does not import pydantic, to start faster
    from dapo_openrlhf.config.reward import RewardSection


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """One or several rewards and the limits they are computed under."""

    sources: tuple[RewardOrigin, ...] = (Rule(),)
    """The rewards, files by their absolute paths; the first decides which answers are right."""
    weights: tuple[float, ...] = (1.0,)
    """One weight for each source; the weighted sum is the reward."""
    answer_form: AnswerForm = "any"
    """``any`` or ``number``: the form in which the rule accepts an answer where the label is a number."""
    correct_from: float = 1.0
    """Lowest score by a file or an endpoint that counts as a right answer."""
    timeout: float = 5.0
    """Seconds the scoring of one response may take."""
    batch_size: int | None = 1
    """Number of a group's responses that are scored in one call; None scores all of them."""
    files_one_by_one: bool = False
    """Whether files get one response at a time of those that are scored in one call."""
    memory: int = 1024
    """MiB of memory the process may take beyond what it holds once everything is loaded."""

    def to_json(self) -> str:
        """The settings as JSON for :meth:`from_json` in the reward process."""
        return json.dumps(asdict(self) | {"sources": [source.name for source in self.sources]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings that :meth:`to_json` has written down."""
        values = json.loads(text)
        sources, weights = map(origin_of, values.pop("sources")), values.pop("weights")
        return cls(sources=tuple(sources), weights=tuple(weights), **values)


def reward_settings(reward: RewardSection) -> RewardSettings:
    """The settings of a reward process by the configuration. Raises ``ConfigError`` for a file that does not exist."""
    served = any(isinstance(origin, Server) for origin in reward.origins)
    batch_size = (None if served else 1) if reward.batch_size == "auto" else reward.batch_size
    return RewardSettings(
        sources=tuple(map(_found, reward.origins)),
        weights=reward.weights or (1.0,) * len(reward.origins),
        answer_form=reward.answer_form,
        correct_from=reward.correct_from,
        timeout=reward.timeout,
        batch_size=batch_size,
        files_one_by_one=served and reward.batch_size == "auto",
        memory=reward.memory,
    )


def _found(origin: RewardOrigin) -> RewardOrigin:
    """The reward with a file's path made absolute, so that every process finds it."""
    if not isinstance(origin, PythonFile):
        return origin
    if not Path(origin.path).is_file():
        raise ConfigError(f"reward.remote_url: there is no file {origin.path}")
    return PythonFile(str(Path(origin.path).resolve()))
