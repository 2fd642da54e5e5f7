"""What a rollout step consists of."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.check.finding import Finding, passed, warned
from dapo_openrlhf.check.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Pass with the sums; combinations that do not divide are refused with the configuration."""
    config = subject.config
    rollout, train, age = config.rollout, config.train, config.async_.max_staleness
    responses = rollout.batch_size * rollout.n_samples_per_prompt
    yield passed(
        f"a step has {rollout.batch_size:,} prompts x {rollout.n_samples_per_prompt} responses = {responses:,}, in "
        f"{config.updates_per_step:,} updates of {train.batch_size:,}, {train.batch_size // config.trainer_ranks:,} for each "
        f"of {config.trainer_ranks} ranks; with K = {age}, up to {(age + 1) * rollout.batch_size:,} groups at once"
    )
    if config.data.max_len > train.max_tokens_per_gpu:
        yield warned(
            f"train.max_tokens_per_gpu: {train.max_tokens_per_gpu:,} is less than the longest sequence, data.max_len "
            f"{config.data.max_len:,}, which gets a micro-batch of its own all the same",
            f"{config.data.max_len:,} or more says what memory it takes",
        )
