"""Settings that are valid, and probably not meant."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.check.finding import Finding, passed, warned
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.cautions import cautions
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import preset_changes


def check(subject: Subject) -> Iterator[Finding]:
    """Pass with the preset; warn about settings that contradict their purpose."""
    config = subject.config
    others = [name for name, _, _ in preset_changes(config)]
    but = f", but {', '.join(others)}" if others else ""
    goes_on = f", goes on from {subject.resume.checkpoint}" if subject.resume else ""
    yield passed(f"run {config.run.name}, preset {config.preset}{but}{goes_on}")
    try:
        prompts = len(subject.prompts())
    except ConfigError:  # which the check of the data tells
        prompts = config.rollout.batch_size
    for caution in cautions(config, prompts=prompts):
        words, _, remedy = caution.rpartition("; ")
        yield warned(words or remedy, remedy if words else "")
