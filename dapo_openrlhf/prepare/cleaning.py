"""Decides which problems are kept: every row is either written, or counted under the one reason for dropping it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, assert_never

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.prepare.labels import canonical, is_integer
from dapo_openrlhf.prepare.rows import Problem, Readable

LISTED = 100
"""Most examples of each kind that a report keeps."""

LABEL_SHOWN = 60
"""Most characters of an answer that a report shows."""

PROMPT_SHOWN = 80
"""Most characters of a prompt that a report shows."""

PLACES = 3
"""Most rows that a report names for each answer in a conflict."""

DROPS = ("broken", "conflicts", "duplicates", "non_integer", "too_long")
"""Reasons for dropping a row; a dropped row has exactly one."""

FOUND = (
    "unique_prompts",
    "conflicting_prompts",
    "non_integer_labels",
    "negative_labels",
    "answers_cut_off",
    "unreadable_labels",
)
"""Names of the counts of prompts, and of rows by their label."""

OnBroken = Literal["error", "drop"]
"""Values of ``--broken``."""

OnConflict = Literal["drop", "keep", "error"]
"""Values of ``--conflicts``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules for keeping or dropping rows."""

    broken: OnBroken = "error"
    """What to do with rows without a problem or an answer."""
    conflicts: OnConflict = "drop"
    """What to do with rows whose prompt has different answers."""
    keep_duplicates: bool = False
    """Whether to keep rows with the same prompt and the same answer as an earlier row."""
    require_integer: bool = False
    """Whether to drop rows whose answer is not an integer."""
    max_tokens: int | None = None
    """Largest number of tokens of a prompt that is kept; None keeps all."""


@dataclass(slots=True)
class Stand:
    """The rows in which a prompt has one of its answers."""

    rows: int = 0
    where: list[str] = field(default_factory=list)
    """Places of the first :data:`PLACES` rows."""

    def add(self, where: str) -> None:
        """Add a row."""
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
    """The problems that are kept and what was found; rows read = problems + all drops."""

    problems: list[Problem] = field(default_factory=list)
    read: int = 0
    dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DROPS, 0)))
    """Number of dropped rows by reason, a name of :data:`DROPS`."""
    found: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FOUND, 0)))
    """Counts over all rows read, dropped or not, by the names of :data:`FOUND`."""
    conflicts: list[Conflict] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first :data:`LISTED` rows of each kind, with their places and reasons."""

    @property
    def drops(self) -> str:
        """The numbers of dropped rows, in words."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count) or "nothing"

    def note(self, kind: str, words: str) -> None:
        """Keep an example of a kind."""
        listed = self.examples.setdefault(kind, [])
        if len(listed) < LISTED:
            listed.append(words)


def clean(rows: Iterable[Readable], rules: Rules, *, tokens: Callable[[Problem], int] | None = None) -> Cleaned:
    """Apply the rules. ``tokens`` counts a prompt's tokens; it is needed with ``max_tokens``.

    Duplicates have exactly the same prompt, and the same answer up to how it is written. All but the first are
    discarded while reading, since some sets repeat every problem a hundred times. Raises ``ConfigError`` where a rule
    says so.
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
            continue
        match rules.broken:
            case "error":
                raise ConfigError(f"{row}; --broken drop leaves such rows out")
            case "drop":
                cleaned.dropped["broken"] += 1
                cleaned.note("broken", str(row))
            case _:
                assert_never(rules.broken)


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
    match rules.conflicts:
        case "error":
            if count := len(cleaned.conflicts):
                listed = "\n  ".join(str(conflict) for conflict in cleaned.conflicts[:LISTED])
                raise ConfigError(f"{count} prompts have conflicting answers (--conflicts drop|keep):\n  {listed}")
        case "drop":
            for conflict in cleaned.conflicts:
                cleaned.dropped["conflicts"] += sum(stand.rows for stand in by_prompt.pop(conflict.prompt).values())
        case "keep":
            pass
        case _:
            assert_never(rules.conflicts)


def _key(problem: Problem) -> str:
    prompt = problem.prompt
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
