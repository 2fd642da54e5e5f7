"""The rewards: files load, servers answer, and a response to the first prompt gets a score; or an environment begins."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.backend.run.environment_checks import check_environment, environment_settings
from dapo_openrlhf.backend.run.inputs import check_rewards
from dapo_openrlhf.check.finding import Finding, failed, passed
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.rewards.process import RewardProcess, RewardUnavailable
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import reward_settings

SAMPLE = "Let me think. Answer: 7"
"""The response that is scored."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for a reward that does not load, does not answer, or fails for a harmless response.

    Where an environment gives the rewards, fail if it does not load, or does not begin with the first prompt.
    """
    environment = environment_settings(subject.config)
    yield from _rewards(subject) if environment is None else _environment(environment, subject)


def _environment(settings: EnvironmentSettings, subject: Subject) -> Iterator[Finding]:
    try:
        prompt = subject.prompts()[0]
    except ConfigError:
        check_environment(settings)
        yield passed(f"{settings.name} loads; not begun, for want of prompts")
        return
    check_environment(settings, prompt)
    yield passed(f"{settings.name} loads, and begins with the first prompt")


def _rewards(subject: Subject) -> Iterator[Finding]:
    settings = reward_settings(subject.config.reward)
    check_rewards(settings)
    names = ", ".join(source.name for source in settings.sources)
    try:
        prompt = subject.prompts()[0]
    except ConfigError:
        yield passed(f"{names} answers; not asked for a score, for want of prompts")
        return
    question = Question(
        responses=[SAMPLE],
        queries=[prompt.text + SAMPLE],
        prompt=prompt.text,
        label=prompt.label,
        columns=prompt.columns,
    )
    try:
        with RewardProcess(settings) as process:
            scored = process.score_all(question)[0]
    except RewardUnavailable as error:
        raise ConfigError(f"reward.remote_url: {names}: {error}") from error
    if scored.score is None:
        yield failed(
            f"reward.remote_url: {names}: a response to the first prompt cannot be scored: {scored.error}",
            "mend the reward; a run would count every response as an error",
        )
        return
    yield passed(f"{names}: a sample response scores {scored.score.reward:g} in {scored.seconds:.2g} s")
