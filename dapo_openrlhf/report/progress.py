"""The progress of a run or an evaluation, with an estimate of the time left (standard library only)."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import Counter, deque
from collections.abc import Mapping
from typing import TextIO

from dapo_openrlhf.pipeline.evaluation import ProblemResult
from dapo_openrlhf.report.recorder import Sink

LINES_PER_HEADER = 20
SECONDS_PER_LINE = 2.0
RECENT_STEPS = 20
MOST_REWARD_ERRORS = 0.05
"""Share of groups that could not be scored over the recent steps, above which a warning is printed."""

NARROW = 80
"""Columns that every terminal and every log has."""
LEFT_OUT = ("elapsed", "s/step")
"""Columns of a line that are left out, in this order, where it would be too wide."""

_FILTERED = ("groups/all_right", "groups/all_wrong")


def clock_time(seconds: float) -> str:
    """Seconds as ``m:ss`` or, from one hour on, ``h:mm:ss``; rounded to the nearest second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """How fast a run is: the durations of its newest steps."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def add(self, row: Mapping[str, float]) -> None:
        """Take in a step's row."""
        if math.isfinite(seconds := row.get("seconds/step", math.nan)):
            self._recent.append(seconds)

    def seconds_left(self, done: int) -> float | None:
        """The number of steps left times the median duration of the last 20 steps; None before any step was timed."""
        if not self._recent:
            return None
        return max(self._max_steps - done, 0) * statistics.median(self._recent)


class ProgressLine(Sink):
    """Prints the progress of a run: plain ASCII lines that scroll, the same on a terminal and in a log file.

    The first and the last step always get a line; the others only when two seconds have passed since the last line.
    A line shows the numbers of its own step. The newest held-out accuracy and the counts of what went wrong since the
    last line are carried over to the next one.
    """

    name = "the progress"

    def __init__(self, max_steps: int, stream: TextIO, *, width: int = NARROW) -> None:
        """``max_steps``: number of rollout steps of the run, at least 1; ``width``: columns that a line may take."""
        self._max_steps = max_steps
        self._stream = stream
        self._width = width
        self._pace = Pace(max_steps)
        self._lines = 0
        self._printed_at = -math.inf
        self._held_out: float | None = None
        self._counted: Counter[str] = Counter()
        self._reward_errors: deque[float] = deque(maxlen=RECENT_STEPS)
        self._warned = False

    def step(self, step: int, row: Mapping[str, float], elapsed: float) -> None:
        """Take in the row of ``step`` (counted from 0, shown from 1), ``elapsed`` seconds into the run."""
        self._pace.add(row)
        self._held_out = row.get("eval/accuracy", self._held_out)
        self._counted["failed"] += round(row.get("groups/failed", 0.0))
        self._counted["prompt(s) dropped"] += round(row.get("prompts/dropped", 0.0))
        self._counted["update(s) without a token"] += round(row.get("updates/empty", 0.0))
        self._counted["step(s) all truncated"] += row.get("truncated_share") == 1.0
        self._counted["update(s) stopped"] += round(row.get("updates/bad", 0.0) + row.get("updates/overflow", 0.0))
        last = step + 1 >= self._max_steps
        if last or elapsed - self._printed_at >= SECONDS_PER_LINE:
            self._print(self._cells(step + 1, row, elapsed))
            self._printed_at = elapsed
            self._held_out = None
            self._counted.clear()
        self._watch_rewards(row)

    def _watch_rewards(self, row: Mapping[str, float]) -> None:
        """Warn once when the recent share of groups without a score exceeds the limit; again after it has fallen."""
        self._reward_errors.append(row.get("reward_errors", 0.0))
        share = sum(self._reward_errors) / len(self._reward_errors)
        if share > MOST_REWARD_ERRORS and not self._warned:
            steps = len(self._reward_errors)
            print(
                f"warning: {share:.1%} of the groups of the last {steps} steps could not be scored; events.jsonl says why "
                "(group_failed, reason reward_... or environment_...)",
                file=self._stream,
                flush=True,
            )
        self._warned = share > MOST_REWARD_ERRORS

    def _cells(self, done: int, row: Mapping[str, float], elapsed: float) -> dict[str, str]:
        """The texts of one line by column title. Every text is as wide as its column, whatever the step."""
        left = self._pace.seconds_left(done)
        digits = len(str(self._max_steps))
        filtered = sum(row[name] for name in _FILTERED if name in row)
        age = f"{_number(row, 'policy_age/mean', '.2f')}/{_number(row, 'policy_age/max', '.0f')}"
        cells = {
            "step": f"{done:>{digits}}/{self._max_steps}".rjust(5),
            "reward": _number(row, "reward", "+7.3f"),
            "right": _number(row, "accuracy", "6.1%"),
            "held-out": f"{self._held_out:8.1%}" if self._held_out is not None else " " * 8,
            "kept": _number(row, "groups/kept", "4.0f"),
            "drop": f"{filtered:4.0f}",
            "age": age.rjust(6),
            "tok/s": _rate(row.get("tokens_per_second/trained")).rjust(7),
            "s/step": _number(row, "seconds/step", "6.1f" if row.get("seconds/step", 0.0) >= 1000 else "6.2f"),
            "elapsed": f"{clock_time(elapsed):>7}",
            "left": f"{'-' if left is None else clock_time(left):>7}",
        }
        for name in LEFT_OUT:
            if sum(map(len, cells.values())) + len(cells) - 1 > self._width:
                del cells[name]
        return cells

    def _print(self, cells: Mapping[str, str]) -> None:
        if self._lines % LINES_PER_HEADER == 0:
            titles = (title.rjust(len(text)) for title, text in cells.items())
            print(" ".join(titles), file=self._stream)
        line, notes = " ".join(cells.values()), [f"{count} {what}" for what, count in self._counted.items() if count]
        beside = "  ".join([line, *notes])
        if len(beside) <= self._width:
            line = beside
        else:
            line = "\n".join(
                [line, *textwrap.wrap("  ".join(notes), self._width, initial_indent="  ", subsequent_indent="  ")]
            )
        print(line, file=self._stream, flush=True)
        self._lines += 1


class EvaluationProgress:
    """Describes the progress of an evaluation: problems answered, accuracy so far, speed, time left."""

    SURE_FROM = 0.05
    """Share of problems answered before speed and time left are shown, since the first ones in flight end together."""

    def __init__(self, problems: int, *, at_once: int) -> None:
        """``problems``: number of problems to answer, at least 1; ``at_once``: how many are in progress at a time."""
        self._problems = problems
        self._at_once = at_once
        self._answered = 0
        self._judged = 0
        self._right = 0
        self._tokens = 0

    def answered(self, result: ProblemResult) -> None:
        """Take in the result of one more problem."""
        self._answered += 1
        self._judged += result.judged
        self._right += result.right
        self._tokens += sum(response.length for response in result.responses)

    def when_stopped(self) -> str:
        """What is left of an evaluation that is stopped."""
        return (
            f"{self._answered} of {self._problems} problems were answered, and nothing is kept of them; the same command "
            "begins anew"
        )

    def words(self, seconds: float) -> str:
        """The progress as one line, ``seconds`` (more than 0) after the first problem was begun. Only tokens of
        finished problems are counted.

        For the time left a problem in progress counts as half done.
        """
        accuracy = f"{self._right / self._judged:.1%}" if self._judged else "-"
        speed = left = "-"
        if self._answered >= self.SURE_FROM * self._problems:
            speed = f"{self._tokens / seconds:,.0f}"
            rest = self._problems - self._answered
            half_done = min(self._at_once, rest) / 2
            left = clock_time(seconds / (self._answered + half_done) * (rest - half_done))
        return (
            f"{self._answered:>{len(str(self._problems))}}/{self._problems} problems  accuracy {accuracy:>6}  "
            f"{speed:>6} tokens/s  elapsed {clock_time(seconds):>6}  left {left:>6}"
        )


def _number(row: Mapping[str, float], name: str, spec: str) -> str:
    """A number of the row by its name, or a dash of the same width where the row does not have it."""
    if name in row:
        return format(row[name], spec)
    return "-".rjust(len(format(0.0, spec)))


def _rate(rate: float | None) -> str:
    """Tokens per second in at most seven characters."""
    if rate is None or not math.isfinite(rate):
        return "-"
    return f"{rate:,.0f}" if rate < 1e6 else f"{rate / 1e6:.2f}M"
