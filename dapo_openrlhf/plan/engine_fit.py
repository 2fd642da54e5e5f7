"""The speed of engines, fitted to how long their groups took.

A group with a longest response of L tokens took part in L decode steps, so its duration is a sum over these steps::

    seconds = step * L + per_sequence * sum(sequences) + per_context_token * sum(context)
              + per_prompt_token * (prompt tokens that were admitted meanwhile) + latency

Sequences and context in each step follow from all groups' lengths once it is known how fast an engine went when. That is
taken to be even at first, then computed from the coefficients found, and so on. Decode steps during training count
``1 + slowed`` times where engines and trainer share a device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dapo_openrlhf.plan.least_squares import Array, error_of, least_squares
from dapo_openrlhf.plan.observed import Group, Window
from dapo_openrlhf.plan.scenario import EngineSpeed

ROUNDS = 4
"""How often sequences in flight and coefficients are computed in turn."""
EVIDENCE = 0.05
"""Share of the squared error by which ``slowed`` must lessen it to be believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFit:
    """Coefficients in seconds; see above."""

    coefficients: Array
    slowed: float
    error: float
    """Root mean square of the relative errors of the groups' durations."""

    def speed(self, *, most_sequences: int) -> EngineSpeed:
        """As a speed for simulations."""
        step, per_sequence, per_context_token, per_prompt_token, latency = map(float, self.coefficients)
        return EngineSpeed(
            step=max(step, 1e-9),
            per_sequence=per_sequence,
            per_context_token=per_context_token,
            per_prompt_token=per_prompt_token,
            most_sequences=most_sequences,
            latency=latency,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What else went on while groups were generated. Windows of one kind do not overlap."""

    training: Sequence[Window]
    pauses: dict[int, Sequence[Window]]
    """By engine, when it took new weights."""
    most_sequences: int


def fit_engines(
    groups: Sequence[Group], usable: Array, conditions: Conditions, *, slowed: Sequence[float]
) -> EngineFit:
    """Fit to the groups with ``usable`` > 0, which is how often each of them counts; the others fill engines only.

    ``slowed``: the values to choose among; the first is kept unless another one is clearly better.
    """
    engines: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        engines[group.engine].append(index)
    parts = [_Engine([groups[i] for i in chosen], chosen, conditions) for chosen in engines.values()]
    order = np.concatenate([part.order for part in parts])
    counts = usable[order] * np.concatenate([part.unqueued for part in parts])
    if not counts.any():
        counts = usable[order]
    first, *others = [_fit(parts, counts, value) for value in slowed]
    best = min(others, key=lambda fit: fit.error, default=first)
    return best if best.error**2 < first.error**2 * (1 - EVIDENCE) else first


def _fit(parts: Sequence[_Engine], counts: Array, slowed: float) -> EngineFit:
    seconds = np.concatenate([part.seconds for part in parts])
    weights = np.sqrt(counts / np.maximum(seconds, 1e-3))
    longest = np.concatenate([part.longest for part in parts])
    coefficients = np.zeros(5)
    coefficients[0] = float((counts * seconds).sum() / (counts * longest).sum())
    for _ in range(ROUNDS):
        columns = np.concatenate([part.columns(coefficients, slowed) for part in parts])
        coefficients = least_squares(columns, seconds, weights)
        if coefficients[:3].sum() <= 0:
            coefficients[0] = 1e-9
    relative = np.sqrt(counts) / np.maximum(seconds, 1e-3)
    error = (error_of(columns, seconds, relative, coefficients) / counts.sum()) ** 0.5
    return EngineFit(coefficients=coefficients, slowed=slowed, error=float(error))


class _Engine:
    """The groups of one engine as arrays, and the curve of its progress."""

    def __init__(self, groups: Sequence[Group], order: Sequence[int], conditions: Conditions) -> None:
        self.order = np.array(order)
        self._begin = np.array([group.begin for group in groups])
        self._end = np.array([group.end for group in groups])
        self.longest = np.array([float(group.longest) for group in groups])
        self._prompt = np.array([float(group.prompt_tokens) for group in groups])
        self._of = np.repeat(np.arange(len(groups)), [len(group.lengths) for group in groups])
        self._lengths = np.array([float(length) for group in groups for length in group.lengths])
        self._paused = _Covered(conditions.pauses.get(groups[0].engine, ()))
        self.seconds = np.maximum(self._end - self._begin - self._paused.seconds(self._begin, self._end), 1e-6)
        self._training = _Covered(conditions.training)
        begins = np.sort(self._begin)
        self._begins = begins
        self._prompts_begun = np.concatenate([[0.0], np.cumsum(self._prompt[np.argsort(self._begin)])])
        self._admitted = self._prompts_before(self._end) - self._prompts_before(self._begin)
        self._most = conditions.most_sequences
        self._curve: tuple[Array, Array] | None = None
        self.unqueued = self._not_full()

    def _not_full(self) -> Array:
        """1 for each group that did not have to wait for others to end, 0 otherwise."""
        running = np.searchsorted(np.sort(self._begin), self._begin, "right") - np.searchsorted(
            np.sort(self._end), self._begin, "right"
        )
        each = len(self._lengths) / len(self._begin)
        return (running * each <= self._most).astype(float)

    def columns(self, coefficients: Array, slowed: float) -> Array:
        """What each group's duration depends on [groups, 5], if the engine's speed has these coefficients."""
        starts = self._begin[self._of]
        ends = self._sequence_ends(starts)
        times = np.unique(np.concatenate([starts, ends, self._end, self._training.edges]))
        middle = (times[1:] + times[:-1]) / 2
        sequences = np.searchsorted(np.sort(starts), middle, "right") - np.searchsorted(np.sort(ends), middle, "right")
        sequences = np.clip(sequences, 0, self._most).astype(float)
        training = self._training.within(middle)
        done = np.interp(middle, *self._progress())
        context = np.maximum(0.0, self._context(starts, ends, middle, done))
        step, per_sequence, per_context, per_prompt, _ = coefficients
        pace = (step + per_sequence * sequences + per_context * context) * (1 + slowed * training)
        steps = self._decoding(times, per_prompt) / np.maximum(pace, 1e-9)
        self._curve = times, np.concatenate([[0.0], np.cumsum(steps)])
        weight = steps * (1 + slowed * training)
        took = np.maximum(self._between(times, steps), 1e-6)
        share = self.longest / took
        return np.stack(
            [
                self._between(times, weight) * share,
                self._between(times, weight * sequences) * share,
                self._between(times, weight * context) * share,
                self._admitted,
                np.ones_like(self._begin),
            ],
            axis=1,
        )

    def _prompts_before(self, times: Array) -> Array:
        """Prompt tokens of the groups that began before each time."""
        found: Array = self._prompts_begun[np.searchsorted(self._begins, times, "left")]
        return found

    def _decoding(self, times: Array, per_prompt: float) -> Array:
        """Seconds between successive times that are left for decoding: prefill goes first, and pauses stop both."""
        arrived = per_prompt * self._prompts_before(times)  # seconds of prefill
        behind = np.minimum.accumulate(arrived - times)
        served = np.minimum(times + behind, per_prompt * self._prompts_begun[-1])
        paused = self._paused.seconds(times[:-1], times[1:])
        left: Array = np.maximum(np.diff(times) - np.diff(served) - paused, 0.0)
        return left

    def _progress(self) -> tuple[Array, Array]:
        """Times, and the decode steps done up to them; even speed before anything is known."""
        if self._curve is None:
            times = np.array([self._begin.min(), self._end.max()])
            return times, (times - times[0]) * float(self.longest.sum() / self.seconds.sum())
        return self._curve

    def _sequence_ends(self, starts: Array) -> Array:
        """When each response ended: its group's progress is known at both ends."""
        times, done = self._progress()
        first, last = np.interp(starts, times, done), np.interp(self._end[self._of], times, done)
        reached = first + (last - first) * self._lengths / self.longest[self._of]
        ends: Array = np.interp(reached, done, times)
        return ends

    def _context(self, starts: Array, ends: Array, middle: Array, done: Array) -> Array:
        """Tokens of all running sequences, prompts included, at these times."""
        born = np.interp(starts, *self._progress())
        by_start, by_end = np.argsort(starts), np.argsort(ends)
        value = self._prompt[self._of] - born
        begun = np.concatenate([[0.0], np.cumsum(value[by_start])])
        ended = np.concatenate([[0.0], np.cumsum(value[by_end])])
        up, down = np.searchsorted(starts[by_start], middle, "right"), np.searchsorted(ends[by_end], middle, "right")
        found: Array = begun[up] - ended[down] + (up - down) * done
        return found

    def _between(self, times: Array, amounts: Array) -> Array:
        """The sum of amounts, given between successive times, over each group's life."""
        total = np.concatenate([[0.0], np.cumsum(amounts)])
        found: Array = np.interp(self._end, times, total) - np.interp(self._begin, times, total)
        return found


class _Covered:
    """Windows that do not overlap, for whole arrays of times."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.edges = np.array([edge for window in windows for edge in window])
        lengths = np.array([end - begin for begin, end in windows])
        self._covered = np.repeat(np.cumsum(lengths), 2) if len(windows) else np.zeros(0)
        if len(windows):
            self._covered[0::2] -= lengths

    def seconds(self, begin: Array, end: Array) -> Array:
        """How much of each time from ``begin`` to ``end`` is covered."""
        if not len(self.edges):
            return np.zeros_like(begin)
        found: Array = np.interp(end, self.edges, self._covered) - np.interp(begin, self.edges, self._covered)
        return found

    def within(self, times: Array) -> Array:
        """1 for each time that is covered, 0 for the others."""
        return (np.searchsorted(self.edges, times, "right") % 2).astype(float)
