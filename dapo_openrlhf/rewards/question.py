"""The question that a reward answers, and the interface of rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dapo_openrlhf.types import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Responses to one prompt, to be scored together."""

    responses: Sequence[str]
    """The responses without end and padding tokens."""
    queries: Sequence[str]
    """Prompt and response as the model saw and wrote them, special tokens included."""
    prompt: str
    """The prompt as the model saw it, special tokens included."""
    label: object
    columns: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.responses)


class RewardSource(Protocol):
    """One reward. Raises whatever goes wrong: an error is never a wrong answer."""

    def __call__(self, question: Question) -> list[Score]:
        """Score each response."""
        ...
