"""The messages of a run about what happened, besides its progress (standard library only)."""

from __future__ import annotations

from collections.abc import Callable

from dapo_openrlhf.pipeline.bad_updates import words
from dapo_openrlhf.pipeline.events import (
    Evaluated,
    Event,
    GroupFailed,
    PromptDropped,
    Rewound,
    TrainerReplaced,
    UpdateSkipped,
)
from dapo_openrlhf.pipeline.losses import words_of_engines
from dapo_openrlhf.report.recorder import Sink
from dapo_openrlhf.report.watch import Watch

FAILURES_SHOWN = 5
DROPPED_SHOWN = 20


class Notices(Sink):
    """Prints held-out accuracies, what failed, and signs that nothing is learned."""

    name = "what happened"

    def __init__(self, say: Callable[[str], None], *, watch: Watch) -> None:
        self._say = say
        self._watch = watch
        self._failures = self._dropped = 0

    def event(self, event: Event) -> None:
        """Print the message about an event, if there is one."""
        self._watch.add(event)
        if said := words_of_engines(event):
            self._say(said)
        match event:
            case Evaluated():
                self._say(measured(event))
            case UpdateSkipped():
                self._say(
                    f"warning: update {event.update} of step {event.step} was stopped before the optimizer saw it: not "
                    f"finite were {words(event.not_finite)}; {event.in_a_row} in a row; "
                    f"{event.problem or f'its batch is in {event.path}'}"
                )
            case Rewound():
                self._say(f"warning: {rewound(event)}")
            case TrainerReplaced():
                self._say(
                    f"a new trainer goes on after {event.step} rollout steps, {event.seconds:.1f} s after the loss"
                )
            case PromptDropped() if self._dropped < DROPPED_SHOWN:
                self._dropped += 1
                self._say(f"prompt dropped ({event.reason}): {event.message}")
            case GroupFailed() if self._failures < FAILURES_SHOWN:
                self._failures += 1
                self._say(f"group {event.group} failed ({event.reason}): {event.message}")


def measured(event: Evaluated) -> str:
    """The accuracies of an evaluation, of every set that has a name, as one line."""
    if event.sets:
        sets = [f"{name} {one.accuracy:.1%} on {one.problems} problems" for name, one in event.sets.items()]
        failed = [(f" of {name}", one.errors, one.responses) for name, one in event.sets.items()]
        words = f"held-out accuracy after {event.step} steps: {', '.join(sets)}"
    else:
        failed = [("", event.errors, event.responses)]
        words = f"held-out accuracy {event.accuracy:.1%} on {event.problems} problems after {event.step} steps"
    return words + "".join(
        f"; {errors} of {responses} responses{of} were errors" for of, errors, responses in failed if errors
    )


def rewound(event: Rewound) -> str:
    """What was lost, and what follows, as one line."""
    undone = event.from_step - event.to_step
    lost = f"{undone} of {event.from_step} rollout steps are lost" if undone > 0 else "no rollout step is lost"
    place = "the newest good checkpoint" if event.to_step else "the start"
    if not event.restart:
        return f"{event.message}; {lost}"
    return (
        f"{event.message}; {lost}, and a new trainer goes on from {place} in {event.pause:g} s (restart {event.restart} of "
        f"{event.max_restarts} within an hour, train.max_restarts)"
    )
