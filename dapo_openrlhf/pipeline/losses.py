"""Which engines a run lost, in words for its user (standard library)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.events import (
    EngineAnswers,
    EngineGivenUp,
    EngineLost,
    EngineReplaced,
    EngineSilent,
    Event,
)


def words_of_engines(event: Event) -> str | None:
    """The message about an event of an engine; None for other events."""
    match event:
        case EngineSilent():
            return f"warning: {event.message}"
        case EngineAnswers():
            return f"engine {event.engine} works again after {event.seconds:.0f} s"
        case EngineLost():
            return (
                f"warning: engine {event.engine} is lost and its groups are begun again: {_first_line(event.message)}"
            )
        case EngineReplaced():
            return f"engine {event.engine} is replaced, with the newest weights"
        case EngineGivenUp():
            goes_on = f"the run goes on with {event.left}" if event.left else "no engine is left"
            return f"warning: {_first_line(event.message)}; it is given up, and {goes_on}"
    return None


@dataclass(slots=True)
class EngineLosses:
    """Counts the engines that were lost, by the run's events."""

    lost: Counter[int] = field(default_factory=Counter)
    replaced: Counter[int] = field(default_factory=Counter)
    given_up: set[int] = field(default_factory=set)
    causes: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    """The last cause of each engine's losses."""

    def add(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case EngineLost():
                self.lost[event.engine] += 1
                self.causes[event.engine] = _first_line(event.message)
            case EngineReplaced():
                self.replaced[event.engine] += 1
                self.given_up.discard(event.engine)
            case EngineGivenUp():
                self.given_up.add(event.engine)

    def words(self) -> list[str]:
        """A sentence for each engine that was lost."""
        return [
            f"engine {engine} was lost {_times(self.lost[engine])}, replaced {_times(self.replaced[engine])}"
            + (", then given up" if engine in self.given_up else "")
            + f" ({self.causes[engine]})"
            for engine in sorted(self.lost)
        ]


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _first_line(message: str) -> str:
    return message.partition("\n")[0].rstrip(".")
