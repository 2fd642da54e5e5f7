"""The tokenizer: the tokens that end a response, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.check.finding import Finding, passed, warned
from dapo_openrlhf.check.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Pass with the tokens that end a response; warn about a chat template that is not used."""
    notes = subject.files().stop.notes
    yield passed(notes[0] if notes else f"responses end with {', '.join(map(str, subject.files().stop.ids))}")
    for note in notes[1:]:
        yield warned(note)
    data, folder = subject.config.data, Path(subject.config.actor.model_name_or_path)
    if not data.apply_chat_template and data.input_template is None and has_chat_template(folder):
        yield warned(
            "the tokenizer has a chat template, and prompts go to the model as they are",
            "right for a base model; for one that was trained to chat set data.apply_chat_template true",
        )


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder has a chat template; False for a name on the hub."""
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))
