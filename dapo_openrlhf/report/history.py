"""What was measured before a run was resumed (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dapo_openrlhf.pipeline.event_file import is_log
from dapo_openrlhf.pipeline.event_log import read_what_is_left
from dapo_openrlhf.pipeline.events import Evaluated, Event, Rewound, RunStarted
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.recorder import Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What is known of a run from before it was resumed; nothing of a run that begins."""

    steps: int = 0
    """Number of rollout steps done."""
    lives: int = 0
    """How often it was begun or resumed."""
    evaluations: Mapping[int, Evaluated] = field(default_factory=dict)
    """By the steps done, the later of two after the same."""
    rows: Mapping[int, Row] = field(default_factory=dict)
    """The numbers of its steps, from 0, without those that are done again."""

    @property
    def seconds(self) -> float:
        """Seconds that its steps took."""
        return sum(row.get("seconds/step", 0.0) for row in self.rows.values())

    @property
    def max_policy_age(self) -> int:
        """The largest policy age that was trained, in versions."""
        return round(max((row.get("policy_age/max", 0.0) for row in self.rows.values()), default=0.0))

    def tokens(self, kind: str) -> int:
        """Number of response tokens; ``kind`` is ``generated`` or ``trained``."""
        rates = [
            (row.get(f"tokens_per_second/{kind}", 0.0), row.get("seconds/step", 0.0)) for row in self.rows.values()
        ]
        return round(sum(rate * seconds for rate, seconds in rates))


def earlier_life(events: Path, first_step: int) -> Earlier:
    """What a run's log says of the first ``first_step`` steps; the rows are not in it."""
    if not first_step:
        return Earlier()
    measured, lives = dict[int, Evaluated](), 0
    for logged in read_what_is_left(events, lambda number: None) if is_log(events) else ():
        match logged.event:
            case RunStarted():
                lives += 1
            case Evaluated() as one if one.step <= first_step:
                measured[one.step] = one
    return Earlier(steps=first_step, lives=max(1, lives), evaluations=dict(sorted(measured.items())))


class Measured(Sink):
    """Keeps every evaluation of a run, over its resumes, without what a rewind has undone."""

    name = "what was measured"

    def __init__(self, earlier: Mapping[int, Evaluated], *, first_step: int) -> None:
        """``earlier``: what was measured before the run was resumed, after ``first_step`` steps."""
        self._earlier = earlier
        self._first_step = first_step
        self.evaluations = dict(earlier)
        """By the rollout steps done."""
        self._now: Evaluated | None = None

    def event(self, event: Event) -> None:
        """Take in an evaluation."""
        if isinstance(event, Rewound):
            self.evaluations = {step: one for step, one in self.evaluations.items() if step <= event.to_step}
        if isinstance(event, Evaluated):
            self.evaluations[event.step] = event
            if event.step == self._first_step and self._now is None:
                self._now = event

    @property
    def start(self) -> Evaluated | None:
        """The evaluation from which the run is counted: that of its first start, if it had as many problems."""
        first, now = self._earlier.get(0), self._now
        if first is None or now is None:
            return first or now
        return first if first.problems == now.problems and first.sets.keys() == now.sets.keys() else now

    def held_out(self, *, ended: bool) -> dict[str, dict[str, float | None]]:
        """Accuracy before and after of each set that has a name. ``ended``: whether the last evaluation was made."""
        last = self.evaluations[max(self.evaluations)] if ended and self.evaluations else None
        before, after = (one.sets if one else {} for one in (self.start, last))
        return {
            name: {
                when: sets[name].accuracy if name in sets else None
                for when, sets in (("before", before), ("after", after))
            }
            for name in dict.fromkeys([*after, *before])
        }
