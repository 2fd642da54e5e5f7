"""Reflective phrases and sample responses of a run's evaluations (standard library only).

The paper's case study (DAPO section 4.4): checking and correcting one's own steps, rare at first, appears in training.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PHRASES = (
    "wait",
    "however",
    "let me check",
    "let's check",
    "let me verify",
    "let me reconsider",
    "reconsider",
    "on second thought",
    "re-examine",
    "recheck",
    "double-check",
    "check",
)
"""Phrases that are counted as whole words in any case; where two start at the same place the longer one counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResponse:
    """One line of ``eval/step-N.jsonl``."""

    prompt: str
    label: object
    text: str
    correct: bool | None
    length: int
    """Length of the response in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """Counts of reflective phrases in a set of responses."""

    responses: int
    reflective: int
    """Number of responses with at least one phrase."""
    right_reflective: int
    """Number of right responses among the reflective ones."""
    phrases: Counter[str]
    """How often each phrase occurs, in lower case."""

    @property
    def share(self) -> float:
        """Share of reflective responses, 0 to 1; 0 without responses."""
        return self.reflective / max(self.responses, 1)


class PhraseCounter:
    """Counts the phrases of a list in responses."""

    def __init__(self, phrases: Sequence[str] = PHRASES) -> None:
        """``phrases``: at least one, none empty."""
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise ValueError(f"reflective phrases must be non-empty texts, got {list(phrases)}")
        longest_first = sorted({phrase.strip().lower() for phrase in phrases}, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")

    def count(self, responses: Iterable[KeptResponse]) -> Reflection:
        """Count the phrases in all responses."""
        total = reflective = right = 0
        phrases: Counter[str] = Counter()
        for response in responses:
            found = self._pattern.findall(response.text.lower())
            total += 1
            reflective += bool(found)
            right += bool(found) and response.correct is True
            phrases.update(found)
        return Reflection(responses=total, reflective=reflective, right_reflective=right, phrases=phrases)


def read_kept_responses(folder: Path) -> dict[int, list[KeptResponse]]:
    """The responses of every evaluation of a run, by rollout steps done. ``folder``: the run's ``eval``."""
    kept = {}
    for path in folder.glob("step-*.jsonl"):
        lines = path.read_text(encoding="utf-8").split("\n")  # a response may hold other line ends
        rows = [json.loads(line) for line in lines if line]
        kept[int(path.stem.removeprefix("step-"))] = [
            KeptResponse(
                prompt=row["prompt"],
                label=row["label"],
                text=row["response"],
                correct=row["correct"],
                length=row["length"],
            )
            for row in rows
        ]
    return dict(sorted(kept.items()))


def samples_text(title: str, kept: dict[int, list[KeptResponse]], counter: PhraseCounter, *, problems: int = 3) -> str:
    """Markdown: reflective phrases by step, then the first answer to each of the first ``problems`` at every step."""
    lines = [
        f"## {title}",
        "",
        "| step | responses | reflective | right among those | phrases |",
        "|--:|--:|--:|--:|---|",
    ]
    for step, responses in kept.items():
        found = counter.count(responses)
        right = f"{found.right_reflective / found.reflective:.1%}" if found.reflective else ""
        phrases = ", ".join(f"{phrase} {count:,}" for phrase, count in found.phrases.most_common(5))
        lines.append(f"| {step} | {found.responses:,} | {found.share:.1%} | {right} | {phrases} |")
    for step, responses in kept.items():
        first: dict[str, KeptResponse] = {}
        for response in responses:
            first.setdefault(response.prompt, response)
        for response in list(first.values())[:problems]:
            lines += ["", *_sample(step, response)]
    return "\n".join(lines) + "\n"


def _sample(step: int, response: KeptResponse) -> list[str]:
    verdict = {True: "right", False: "wrong", None: "not judged"}[response.correct]
    quoted = [f"    {line}" for line in [*response.prompt.splitlines(), *response.text.splitlines()]]
    return [f"Step {step}, label {response.label}: {verdict}, {response.length} tokens", "", *quoted]
