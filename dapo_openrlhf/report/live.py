"""A run's progress on a terminal: lines that scroll, and below them a view that is kept up to date (rich)."""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from dapo_openrlhf.pipeline.events import BatchTaken, Event, Rewound
from dapo_openrlhf.pipeline.metrics import Row
from dapo_openrlhf.report.progress import NARROW, Pace, clock_time
from dapo_openrlhf.report.recorder import Sink

if TYPE_CHECKING:
    from rich.console import Console, Group, OverflowMethod

LEVELS = "▁▂▃▄▅▆▇█"
STEPS_DRAWN = 24
BAR = 30
PER_SECOND = 2.0
"""How often the view is drawn anew."""


def console_on(stream: TextIO) -> Console | None:
    """The console of a stream that is a terminal on which the cursor can move; None for another."""
    if not stream.isatty():
        return None
    from rich.console import Console

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else console


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command prints, and the console there if it is a terminal."""

    stream: TextIO
    console: Console | None = None

    @classmethod
    def on(cls, stream: TextIO) -> Output:
        """The output on a stream; on a terminal lines may be printed while a view stands below them."""
        console = console_on(stream)
        return cls(stream) if console is None else cls(Above(console), console)

    @property
    def width(self) -> int:
        """Columns that a line of progress may take."""
        return NARROW if self.console is None else max(NARROW, self.console.width)


class Above(io.TextIOBase, TextIO):
    """A stream whose lines appear above the view. Those with a path or a command stay whole, so that they can be copied."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = ""

    def write(self, text: str) -> int:
        """Print the lines that are whole by now."""
        from rich.text import Text

        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            whole = "/" in line or line[:1].isspace()  # a path or a command may be copied, a table has its columns
            self._console.print(Text(line), soft_wrap=whole)
        return len(text)

    def flush(self) -> None:
        """Write out what was printed."""
        self._console.file.flush()

    def isatty(self) -> bool:
        """True: it stands for a terminal."""
        return True

    def fileno(self) -> int:
        """The terminal's own."""
        return self._console.file.fileno()


class LiveView(Sink):
    """Four lines, none wider than the terminal: how far the run is, what it waits for, what it learns, who is idle."""

    name = "the live view"

    def __init__(
        self, console: Console, *, done: int, max_steps: int, waits: Callable[[], str], clock: Callable[[], float]
    ) -> None:
        """``done``: rollout steps that were done before; ``waits``: says what is waited for now; ``clock`` gives seconds."""
        from rich.live import Live

        self._console = console
        self._max_steps = max_steps
        self._waits = waits
        self._clock, self._started = clock, clock()
        self._pace = Pace(max_steps)
        self._done = done
        self._row: Row = {}
        self._right: deque[float] = deque(maxlen=STEPS_DRAWN)
        self._live = Live(
            console=console,
            get_renderable=self._view,
            refresh_per_second=PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()
        console.show_cursor(True)  # rich hides it, and a process that is killed could not bring it back

    def event(self, event: Event) -> None:
        """Take in what changes the view between two steps."""
        match event:
            case BatchTaken():
                self._row |= {"queue/in_flight": event.in_flight, "queue/ready": event.ready}
            case Rewound():
                self._done = event.to_step

    def step(self, step: int, row: Row, elapsed: float) -> None:
        """Take in a step's row."""
        self._done = step + 1
        self._pace.add(row)
        self._row = dict(row)
        if "accuracy" in row:
            self._right.append(row["accuracy"])

    def close(self) -> None:
        """Remove the view; the lines above it stay."""
        self._live.stop()

    def _view(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        overflow: OverflowMethod = "crop" if self._console.options.ascii_only else "ellipsis"
        return Group(*(Text(line, no_wrap=True, overflow=overflow) for line in self._lines()))

    def _lines(self) -> Sequence[str]:
        left = self._pace.seconds_left(self._done)
        full = round(BAR * self._done / self._max_steps)
        bar = (
            "━" * full + "─" * (BAR - full) if not self._console.options.ascii_only else "#" * full + "." * (BAR - full)
        )
        return (
            f"{bar} {self._done}/{self._max_steps}  {clock_time(self._clock() - self._started)}"
            + (f", {clock_time(left)} left" if left is not None else ""),
            f"now: {self._waits() or 'nothing to wait for'}",
            f"right: {self._drawn()}  age: {self._share('policy_age/mean', '.2f')}"
            f"  reward: {self._share('reward', '+.3f')}  entropy: {self._share('entropy', '.3f')}",
            f"idle: engines {self._share('idle_share/engines', '.0%')}, trainer {self._share('idle_share/trainer', '.0%')}"
            f"  groups: {self._share('queue/in_flight', '.0f')} in flight, {self._share('queue/ready', '.0f')} ready",
        )

    def _drawn(self) -> str:
        if not self._right:
            return "-"
        bars = "".join(LEVELS[min(int(share * len(LEVELS)), len(LEVELS) - 1)] for share in self._right)
        return f"{'' if self._console.options.ascii_only else bars + ' '}{self._right[-1]:.1%}"

    def _share(self, name: str, form: str) -> str:
        return format(self._row[name], form) if name in self._row else "-"
