"""An environment's words as the next turn of a conversation, by the marks that the prompt shows (standard library only).

The policy has ended its own turn with the token that the template asks for, so an observation begins after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Marks:
    shown_by: str
    """What a prompt of this template has in it."""
    before: str
    """What stands between the end of the policy's turn and the words."""
    after: str
    """What stands between the words and the policy's next turn."""


_TEMPLATES = (
    _Marks("<|im_start|>", "\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    _Marks(
        "<|start_header_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    _Marks("<start_of_turn>", "\n<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
)
"""ChatML (Qwen, SmolLM2, Hermes), Llama 3, Gemma."""


def next_turn(words: str, prompt: str) -> str:
    """The observation that says ``words`` to the policy: a turn of the user, or the bare words after a plain prompt."""
    for marks in _TEMPLATES:
        if marks.shown_by in prompt:
            return f"{marks.before}{words}{marks.after}"
    return words
