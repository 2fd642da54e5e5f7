"""The rules by which rows become prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """Everything except the file that determines its prompts, in values that JSON can hold."""

    model: str
    """Folder or name of the model whose tokenizer renders the rows and whose embedding must have the tokens."""
    input_key: str
    """Column of the prompt, or a dotted path into nested columns; the same holds for ``label_key``."""
    label_key: str | None
    """Column of the label; None if the rows need no label, which is empty then."""
    input_setting: str = "data.input_key"
    """The setting that names the prompt's column, for messages."""
    label_setting: str = "data.label_key"
    """The setting that names the label's column, for messages."""
    needs_answer: bool
    """Whether the label must be an answer that the rule reward can compare with."""
    may_lack_label: bool = False
    """Whether rows may be without the label's column, as those of an environment may; their label is None then."""
    max_tokens: int
    """Longest prompt that leaves room for a response, in tokens."""
    why_max: str
    """The settings that ``max_tokens`` comes from, for messages."""
    input_template: str | None = None
    apply_chat_template: bool = False
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    system_prompt: str | None = None
    trust_remote_code: bool = False
    """Whether Python that comes with the model may run."""
    max_rows: int | None = None
    """Number of rows to read from the beginning of the file; None reads all."""
