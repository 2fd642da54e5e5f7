"""What was measured before a run was resumed (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dapo_openrlhf.pipeline.event_file import is_log
from dapo_openrlhf.pipeline.event_log import read_what_is_left
from dapo_openrlhf.pipeline.events import Evaluated, Event, Rewound
from dapo_openrlhf.report.recorder import Sink


def earlier_evaluations(events: Path, first_step: int) -> dict[int, Evaluated]:
    """The evaluations after at most ``first_step`` steps by the steps done, the later of two after the same."""
    if not first_step or not is_log(events):
        return {}
    found = (logged.event for logged in read_what_is_left(events, lambda number: None))
    measured = {one.step: one for one in found if isinstance(one, Evaluated) and one.step <= first_step}
    return dict(sorted(measured.items()))


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
