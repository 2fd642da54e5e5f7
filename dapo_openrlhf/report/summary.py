"""The result of a run, as numbers for ``summary.json`` and as words for its user (standard library only)."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dapo_openrlhf.program import beside
from dapo_openrlhf.report.progress import NARROW, clock_time
from dapo_openrlhf.report.run_folder import RunFolder

Counters = Mapping[str, int | Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of one run, counted from its first start; ``counters`` and what follows them since it was last resumed."""

    accuracy_before: float | None
    """Held-out accuracy of the initial weights, 0 to 1; None where it was not measured."""
    accuracy_after: float | None
    """Held-out accuracy of the final weights, 0 to 1; None where it was not measured."""
    max_staleness: int
    """K: the largest policy age that was allowed, in versions."""
    max_policy_age: int
    """The largest policy age that was trained, in versions."""
    steps: int
    """Number of rollout steps done."""
    first_step_seconds: float | None
    """Seconds from the last start of the run to the end of the first step after it; None where no step was done."""
    train_seconds: float
    """Seconds from the first dispatch until the last weights are live, without start-ups and the final evaluation."""
    generated_tokens: int
    """Number of response tokens generated, those of filtered groups included."""
    trained_tokens: int
    """Number of response tokens of trained groups."""
    counters: Counters
    """Numbers of groups by their outcome, as the ledger counts them."""
    lives: int = 1
    """How often the run was started: 1, and 1 for each time that it was resumed."""
    held_out: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Accuracy ``before`` and ``after`` of each set of held-out problems that has a name; null where it was not measured."""
    restarts: int = 0
    """Number of times that the trainer was lost and a new one went on from a checkpoint."""
    steps_undone: int = 0
    """Number of rollout steps that were lost with it and done again."""
    engines_idle: float | None = None
    """Share of the time in which engines had no work, 0 to 1, without the first quarter of the steps; None where unknown."""
    trainer_idle: float | None = None
    """The same of the trainer ranks."""
    verdict: str = ""
    """What held the run back, in a sentence; see ``verdict.py``."""
    ended: str = ""
    """Why the run ended before its last step, though nothing stopped it; empty if it did not."""
    engines_lost: list[str] = field(default_factory=list)
    """A sentence for each engine that was lost: how often, how often it was replaced, and the last cause."""

    def as_dict(self) -> dict[str, object]:
        """The fields by name, as they go into ``summary.json``; ``Summary(**...)`` gives the same summary back."""
        return asdict(self)


def closing_words(summary: Summary, folder: RunFolder) -> str:
    """Several lines of ASCII for the end of a run: its results, and where the files are.

    Call it once the run's files are written, since it reports missing files as missing.
    """
    seconds = summary.train_seconds
    lines = {
        "held-out accuracy": _accuracies(summary),
        "steps": f"{summary.steps:,} in {seconds:,.1f} s ({clock_time(seconds)}){_lives(summary)}{_first_step(summary)}",
        "tokens per second": f"{_rate(summary.generated_tokens, seconds)} generated, "
        f"{_rate(summary.trained_tokens, seconds)} trained",
        "groups": _groups(summary.counters),
        **({"ended early": summary.ended} if summary.ended else {}),
        **({"trainer": _restarts(summary)} if summary.restarts else {}),
        **({"engines": "; ".join(summary.engines_lost)} if summary.engines_lost else {}),
        **({"held back by": summary.verdict} if summary.verdict else {}),
        "policy age": f"at most {summary.max_policy_age} (max_staleness {summary.max_staleness})",
        "config": _place(folder.config),
        "events": _place(folder.events),
        "summary": _place(folder.summary),
        "curves": _place(folder.picture),
        "checkpoint": _place(folder.checkpoint),
        "TensorBoard": f"{beside('tensorboard')} --logdir {shlex.quote(str(folder.tensorboard))}",
    }
    width = max(map(len, lines))
    return "\n".join(_folded(f"{title:<{width}}  ", text) for title, text in lines.items())


def _folded(title: str, text: str) -> str:
    """A line, folded below its text where it is long; what may be copied whole, a path or a command, stays on one line."""
    if "/" in text:
        return title + text
    return textwrap.fill(
        text,
        NARROW,
        initial_indent=title,
        subsequent_indent=" " * len(title),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _accuracies(summary: Summary) -> str:
    if not summary.held_out:
        return _accuracy(summary.accuracy_before, summary.accuracy_after)
    return "; ".join(f"{name} {_accuracy(one['before'], one['after'])}" for name, one in summary.held_out.items())


def _accuracy(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return "not measured"
    words = " -> ".join("not measured" if value is None else f"{value:.1%}" for value in (before, after))
    if before is None or after is None:
        return words
    return f"{words} ({100 * (after - before):+.1f} percentage points)"


def _first_step(summary: Summary) -> str:
    return "" if summary.first_step_seconds is None else f", the first after {summary.first_step_seconds:,.1f} s"


def _lives(summary: Summary) -> str:
    return "" if summary.lives == 1 else f" in {summary.lives} lives"


def _restarts(summary: Summary) -> str:
    times = "once" if summary.restarts == 1 else f"{summary.restarts} times"
    return f"lost and replaced {times}, {summary.steps_undone} steps done again"


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.0f}" if seconds > 0 else "-"


def _groups(counters: Counters) -> str:
    """The counters that are not zero, in words; one that is split by reason is shown with its reasons."""
    words = []
    for name, count in counters.items():
        reasons = {key: n for key, n in count.items() if n} if isinstance(count, Mapping) else {}
        total = sum(reasons.values()) if isinstance(count, Mapping) else count
        split = ", ".join(f"{n:,} {key.replace('_', ' ')}" for key, n in reasons.items())
        if total:
            words.append(f"{total:,} {name.replace('_', ' ')}" + (f" ({split})" if split else ""))
    return ", ".join(words) or "none"


def _place(path: Path) -> str:
    return str(path) if path.exists() else f"{path} (not written)"
