"""What a judge's process is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dapo_openrlhf.config.choices import AnswerForm
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.reward import RewardSection
from dapo_openrlhf.rewards.question import RULE


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """One or several rewards and the limits they are computed under."""

    sources: tuple[str, ...] = (RULE,)
    """``rule``, absolute paths of Python files, http(s) addresses; the first decides on right."""
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


def judge_settings(reward: RewardSection) -> JudgeSettings:
    """A judge as the configuration says. Raises ``ConfigError`` for a file that is not there."""
    for name in reward.remote_url:
        if name.endswith(".py") and not Path(name).is_file():
            raise ConfigError(f"reward.remote_url: there is no file {name}")
    return JudgeSettings(
        sources=tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in reward.remote_url),
        weights=reward.weights or (1.0,) * len(reward.remote_url),
        answer_form=reward.answer_form,
        correct_from=reward.correct_from,
        timeout=reward.timeout,
        batch_size=reward.batch_size,
        memory=reward.memory,
    )
