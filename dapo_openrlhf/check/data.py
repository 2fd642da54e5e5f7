"""The prompts: their first rows, rendered as the model gets them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dapo_openrlhf.backend.run.inputs import named_sets
from dapo_openrlhf.check.finding import Finding, passed, warned
from dapo_openrlhf.check.subject import SAMPLE_ROWS, Subject
from dapo_openrlhf.dataset.reading import show
from dapo_openrlhf.dataset.remarks import remarks_on
from dapo_openrlhf.dataset.store import PromptSet

PROGRESS = re.compile(r"rows (rendered and tokenized )?after \d+ s")
"""What messages about the progress of the reading contain, which is no finding."""


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for rows that are no prompts, whose labels cannot be read, or that leave no room for a response."""
    for file, prompts in zip(subject.config.data.prompt_dataset, subject.prompts().sets, strict=True):
        yield passed(_words(file, prompts))
    yield passed(f"the first prompt, {show(subject.prompts()[0])}")
    for one, problems in zip(subject.config.eval_sets, subject.problems(), strict=True):
        yield passed(_words(one.path, problems) + (f"; the set {one.key}" if one.key else ""))
    named = named_sets(subject.config, subject.prompts(), subject.problems())
    for note in [*subject.notes, *remarks_on(named)]:
        if not PROGRESS.search(note):
            yield warned(note)


def _words(path: str, prompts: PromptSet) -> str:
    rows = prompts.description["rows"]
    sample = f"the first {rows:,} rows of {path}" if rows >= SAMPLE_ROWS else f"all {rows:,} rows of {path}"
    longest = max(len(prompt.token_ids) for prompt in prompts)
    return f"{sample}: {len(prompts):,} prompts, the longest of {longest:,} tokens"
