"""Which problems stay: every row read is written, or counted under the one reason why not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.prepare.labels import canonical, is_integer
from dapo_openrlhf.prepare.rows import Problem, Readable

LISTED = 100
"""Examples of each kind that a report keeps."""

LABEL_SHOWN = 60
"""Characters of an answer that a report shows."""

PROMPT_SHOWN = 80
"""Characters of a prompt that a report shows."""

PLACES = 3
"""Rows that a report names of each answer in a conflict."""

DROPS = ("broken", "conflicts", "duplicates", "non_integer", "too_long")
"""Why a row does not stay; a row has one reason."""

FOUND = (
    "unique_prompts",
    "conflicting_prompts",
    "non_integer_labels",
    "negative_labels",
    "answers_cut_off",
    "unreadable_labels",
)
"""Prompts, and rows by their label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is done about what is found."""

    broken: Literal["error", "drop"] = "error"
    """Rows without problem or answer."""
    conflicts: Literal["drop", "keep", "error"] = "drop"
    """Rows whose prompt has different answers."""
    keep_duplicates: bool = False
    """Keep rows with the same prompt and the same answer as one before."""
    require_integer: bool = False
    """Drop rows whose answer is no integer."""
    max_tokens: int | None = None
    """Drop prompts with more tokens."""


@dataclass(slots=True)
class Stand:
    """Where a prompt stands with one of its answers."""

    rows: int = 0
    where: list[str] = field(default_factory=list)
    """The first :data:`PLACES` rows."""

    def add(self, where: str) -> None:
        """One more row."""
        self.rows += 1
        if len(self.where) < PLACES:
            self.where.append(where)

    def __str__(self) -> str:
        more = f" and {self.rows - len(self.where)} more" if self.rows > len(self.where) else ""
        return ", ".join(self.where) + more


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A prompt with different answers."""

    prompt: str
    answers: dict[str, Stand]

    def __str__(self) -> str:
        answers = "; ".join(f"{answer!r} in {stand}" for answer, stand in self.answers.items())
        return f"{self.prompt[:PROMPT_SHOWN]!r} has the answers {answers}"


@dataclass(slots=True, kw_only=True)
class Cleaned:
    """The problems that stay and what was found; rows read = problems + all drops."""

    problems: list[Problem] = field(default_factory=list)
    read: int = 0
    dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DROPS, 0)))
    """Rows by reason, a name of :data:`DROPS`."""
    found: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FOUND, 0)))
    """What was read has, dropped or not: names of :data:`FOUND`."""
    conflicts: list[Conflict] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first :data:`LISTED` rows of a kind, where they stand and why."""

    @property
    def drops(self) -> str:
        """Rows dropped, in words."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count) or "nothing"

    def note(self, kind: str, words: str) -> None:
        """Keep an example."""
        listed = self.examples.setdefault(kind, [])
        if len(listed) < LISTED:
            listed.append(words)


def clean(rows: Iterable[Readable], rules: Rules, *, tokens: Callable[[Problem], int] | None = None) -> Cleaned:
    """Apply the rules. ``tokens`` counts a prompt's tokens, needed with ``max_tokens``.

    Duplicates are exact: same prompt, and same answer up to how it is written; all but the first are forgotten as they
    come, since some sets repeat every problem a hundred times. Raises ``ConfigError`` where a rule says so.
    """
    cleaned = Cleaned()
    by_prompt: dict[str, dict[str, Stand]] = {}
    candidates: list[Problem] = []
    for problem in _readable(rows, rules, cleaned):
        _describe(problem, cleaned)
        stand = by_prompt.setdefault(_key(problem), {}).setdefault(canonical(problem.label), Stand())
        stand.add(problem.where)
        if stand.rows == 1 or rules.keep_duplicates:
            candidates.append(problem)
    cleaned.found["unique_prompts"] = len(by_prompt)
    _settle_conflicts(by_prompt, rules, cleaned)
    if not rules.keep_duplicates:
        cleaned.dropped["duplicates"] = sum(
            stand.rows - 1 for stands in by_prompt.values() for stand in stands.values()
        )
    for problem in candidates:
        if _key(problem) not in by_prompt:
            continue  # in conflict, and counted
        if rules.require_integer and not is_integer(problem.label):
            cleaned.dropped["non_integer"] += 1
        elif rules.max_tokens and tokens and (length := tokens(problem)) > rules.max_tokens:
            cleaned.dropped["too_long"] += 1
            cleaned.note("too_long", f"{problem.where}: {length} tokens")
        else:
            cleaned.problems.append(problem)
    assert cleaned.read == len(cleaned.problems) + cleaned.dropped.total()
    return cleaned


def _readable(rows: Iterable[Readable], rules: Rules, cleaned: Cleaned) -> Iterable[Problem]:
    for row in rows:
        cleaned.read += 1
        if isinstance(row, Problem):
            yield row
        elif rules.broken == "error":
            raise ConfigError(f"{row}; --broken drop leaves such rows out")
        else:
            cleaned.dropped["broken"] += 1
            cleaned.note("broken", str(row))


def _describe(problem: Problem, cleaned: Cleaned) -> None:
    """Count and note what is found, before anything is dropped."""
    cleaned.found["answers_cut_off"] += problem.cut
    if not is_integer(problem.label):
        cleaned.found["non_integer_labels"] += 1
        cleaned.note("non_integer", f"{problem.where}: {problem.label[:LABEL_SHOWN]!r}")
    elif canonical(problem.label).startswith("-"):
        cleaned.found["negative_labels"] += 1


def _settle_conflicts(by_prompt: dict[str, dict[str, Stand]], rules: Rules, cleaned: Cleaned) -> None:
    """Report prompts with several answers, and take them out of ``by_prompt`` or raise if the rules say so."""
    cleaned.conflicts = [Conflict(prompt=p, answers=stands) for p, stands in by_prompt.items() if len(stands) > 1]
    cleaned.found["conflicting_prompts"] = len(cleaned.conflicts)
    if cleaned.conflicts and rules.conflicts == "error":
        listed = "\n  ".join(str(conflict) for conflict in cleaned.conflicts[:LISTED])
        count = len(cleaned.conflicts)
        raise ConfigError(f"{count} prompts have conflicting answers (--conflicts drop|keep):\n  {listed}")
    if rules.conflicts == "drop":
        for conflict in cleaned.conflicts:
            cleaned.dropped["conflicts"] += sum(stand.rows for stand in by_prompt.pop(conflict.prompt).values())


def _key(problem: Problem) -> str:
    prompt = problem.prompt
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
