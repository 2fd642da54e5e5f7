"""Checks a run's event log: each prompt trained once or dropped for a reason, no age over K, versions in order.

The log is read as plain JSON, so that the check does not rest on the program whose work it checks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """How a group ended that was trained or dropped."""

    what: str
    """``trained``, or the reason why it was dropped."""
    group: int
    step: int | None
    """The rollout step that trained it."""
    life: int
    """Index of the process that it ended in."""
    time: float
    """Seconds on that process's clock."""


@dataclass(slots=True)
class Ledger:
    """What the events of a run, and of the runs that resumed it, say of its prompts and versions.

    A prompt set must be larger than what the run draws from it: then each prompt may end once.
    """

    problems: list[str] = field(default_factory=list)
    trained: int = 0
    """Number of groups trained, without those of steps that were done again."""
    steps_lost: int = 0
    """Number of rollout steps done again."""
    _life: int = -1
    _bound: int = 0
    _step: int = 0
    _live: int = 0
    _rewound: bool = False
    """Whether the run has just gone back by itself, when engines may get a version that they had before."""
    _open: dict[int, int] = field(default_factory=dict)
    _kept: dict[int, int] = field(default_factory=dict)
    _known: set[int] = field(default_factory=set)
    _ends: dict[int, list[End]] = field(default_factory=lambda: defaultdict(list))
    _captured: dict[int, tuple[int, float]] = field(default_factory=dict)
    """For each checkpoint's step, when the state in it was captured: life and time."""

    def add(self, event: Json) -> None:
        """Take in the next event of the log."""
        match event["event"]:
            case "run_started":
                self._begin(event)
            case "rewound":
                self._go_back(event["to_step"])
                self._rewound = True
            case "group_dispatched":
                self._dispatch(event["group"], event["prompt"])
            case "group_judged":
                self._judge(event)
            case "group_failed" | "group_surplus":
                self._leave(event["group"])
            case "batch_taken":
                self._take(event)
            case "publication_live":
                self._publish(event["version"])
            case "checkpointed":
                self._captured[event["step"]] = self._life, event["time"] - event["seconds"]

    def finish(self) -> None:
        """Check what only the whole log can tell."""
        for prompt, ends in sorted(self._ends.items()):
            if len(ends) > 1:
                how = ", then ".join(
                    f"{end.what} as group {end.group}" + ("" if end.step is None else f" in step {end.step}")
                    for end in ends
                )
                self.problems.append(f"prompt {prompt} ended more than once: {how}")
        self.trained = sum(end.step is not None for ends in self._ends.values() for end in ends)

    def _begin(self, event: Json) -> None:
        self._life += 1
        self._bound = event["max_staleness"]
        self._go_back(event["first_step"])

    def _go_back(self, step: int) -> None:
        """Forget what came after the checkpoint of a step; what was open then comes again."""
        if step > self._step:
            self.problems.append(f"the run goes on after {step} steps, but {self._step} were done")
        self.steps_lost += max(self._step - step, 0)
        captured = self._captured.get(step, (0, 0.0))
        for prompt, ends in self._ends.items():
            self._ends[prompt] = [
                end for end in ends if (end.step < step if end.step is not None else (end.life, end.time) < captured)
            ]
        self._step = self._live = step
        for numbered in (self._open, self._kept, self._known):  # groups may be numbered from 0 again
            numbered.clear()

    def _dispatch(self, group: int, prompt: int) -> None:
        if group in self._known:
            self.problems.append(f"group {group} was dispatched twice")
        self._known.add(group)
        self._open[group] = prompt

    def _judge(self, event: Json) -> None:
        group = event["group"]
        if group not in self._open:
            self.problems.append(f"group {group} was judged, but was not in flight")
            return
        prompt = self._open.pop(group)
        if event["keep"]:
            self._kept[group] = prompt
        elif event["reason"]:
            self._ends[prompt].append(End(event["reason"], group, None, self._life, event["time"]))
        else:
            self.problems.append(f"group {group} was dropped without a reason")

    def _leave(self, group: int) -> None:
        if group in self._open:
            del self._open[group]
        elif group in self._kept:
            del self._kept[group]
        else:
            self.problems.append(f"group {group} failed or was surplus, but was neither in flight nor kept")

    def _take(self, event: Json) -> None:
        step = event["step"]
        if (step, event["version"]) != (self._step, self._step):
            self.problems.append(f"step {step} was trained at version {event['version']}, not step {self._step}")
        self._step = step + 1
        for group, age in zip(event["groups"], event["ages"], strict=True):
            if not 0 <= age <= self._bound:
                self.problems.append(f"group {group} was trained at age {age}, not at 0 to {self._bound}")
            if group not in self._kept:
                self.problems.append(f"group {group} was trained in step {step}, but was not kept")
                continue
            self._ends[self._kept.pop(group)].append(End("trained", group, step, self._life, event["time"]))

    def _publish(self, version: int) -> None:
        if version != self._live + 1 and not (self._rewound and version == self._live):
            self.problems.append(f"version {version} came after version {self._live}")
        self._live, self._rewound = version, False


def ledger_of(events: Iterable[Json]) -> Ledger:
    """The ledger of a log."""
    ledger = Ledger()
    for event in events:
        ledger.add(event)
    ledger.finish()
    return ledger
