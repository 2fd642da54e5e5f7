"""What a row must be to become a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """Everything but the file that decides what becomes of its rows; what JSON can hold."""

    model: str
    """Folder or name of the model whose tokenizer renders and whose embedding must hold the tokens."""
    input_key: str
    """A column, or a dotted path into nested ones; so is ``label_key``."""
    label_key: str | None
    """None: the rows need no label, and have an empty one."""
    needs_answer: bool
    """The label must be an answer that the rule reward can compare with."""
    max_tokens: int
    """Longest prompt that leaves room for a response."""
    why_max: str
    """The settings that ``max_tokens`` comes from, for messages."""
    input_template: str | None = None
    apply_chat_template: bool = False
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    system_prompt: str | None = None
    max_rows: int | None = None
    """Only the first rows of the file are looked at; None takes all."""
