"""What stock OpenRLHF's reward must know of a user's configuration, and the questions it asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import RewardSettings

JUDGE = "DAPO_OPENRLHF_BENCH_JUDGE"
"""Environment variable with :class:`Terms` as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What must be known to judge a response from its text."""

    settings: RewardSettings
    unheard: tuple[str, ...]
    """Texts of tokens that end a response or are put around a text; rewards do not see them."""
    by_scores: bool
    """Whether groups are filtered by a user's scores, and not by what is right."""

    def to_json(self) -> str:
        """The terms for :meth:`from_json` in another process."""
        return json.dumps({"settings": self.settings.to_json(), "unheard": self.unheard, "by_scores": self.by_scores})

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """The terms that :meth:`to_json` has written down."""
        values = json.loads(text)
        return cls(
            settings=RewardSettings.from_json(values["settings"]),
            unheard=tuple(values["unheard"]),
            by_scores=values["by_scores"],
        )


def label_of(label: object, columns: object) -> str:
    """A row's label and its other columns as the label of a prompt file for OpenRLHF."""
    return json.dumps([label, columns], ensure_ascii=False)


def question_of(query: str, prompt: str, label: str, unheard: Sequence[str]) -> Question:
    """The question about one response. Raises ``ValueError`` for a query that does not begin with its prompt."""
    if not query.startswith(prompt):
        raise ValueError(f"the tokenizer does not give the prompt back: {query[: len(prompt)]!r} is not {prompt!r}")
    response = query[len(prompt) :]
    for text in unheard:
        response = response.replace(text, "")
    written, columns = json.loads(label)
    return Question(responses=[response], queries=[query], prompt=prompt, label=written, columns=columns)
