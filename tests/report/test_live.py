"""The live view of a run on a terminal, and the lines above it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from event_files import batch_taken
from rich.console import Console

from dapo_openrlhf.report.live import Above, LiveView, Output
from dapo_openrlhf.report.progress import NARROW

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROW = {
    "accuracy": 0.5,
    "reward": -0.25,
    "entropy": 1.5,
    "policy_age/mean": 0.75,
    "seconds/step": 60.0,
    "idle_share/engines": 0.125,
    "idle_share/trainer": 0.5,
    "queue/in_flight": 12.0,
    "queue/ready": 3.0,
}


class Terminal(io.StringIO):
    """Keeps what is printed on it."""

    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["utf-8", "ascii"])
def terminal(request: pytest.FixtureRequest) -> Terminal:
    class Encoded(Terminal):
        encoding = request.param

    return Encoded()


@pytest.fixture
def view(terminal: Terminal) -> Iterator[LiveView]:
    """The view of a run that has done 4 of 20 steps, on a terminal of 80 columns."""
    console = Console(file=terminal, force_terminal=True, width=NARROW, highlight=False)
    made = LiveView(console, done=4, max_steps=20, waits=lambda: "a batch: " + "12 groups " * 20, clock=Clock())
    yield made
    made.close()


def lines_of(view: LiveView) -> list[str]:
    """The view as it is drawn."""
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=NARROW, highlight=False).print(view._view())
    return CODES.sub("", stream.getvalue()).splitlines()


def test_the_view_tells_how_far_the_run_is_what_it_waits_for_and_who_is_idle(view: LiveView) -> None:
    view.step(9, ROW, 0.0)
    assert view._clock() == 0.0
    done, now, learned, idle = lines_of(view)
    assert done[30:] == " 10/20  0:00, 10:00 left" and len(set(done[:15])) == len(set(done[15:30])) == 1
    assert now.startswith("now: a batch: 12 groups")
    assert "50.0%  age: 0.75  reward: -0.250  entropy: 1.500" in learned
    assert idle == "idle: engines 12%, trainer 50%  groups: 12 in flight, 3 ready"


def test_a_terminal_without_unicode_gets_none(view: LiveView, terminal: Terminal) -> None:
    view.step(9, ROW, 0.0)
    assert "".join(lines_of(view)).isascii() == (terminal.encoding == "ascii")


def test_no_line_of_the_view_is_wider_than_the_terminal(view: LiveView) -> None:
    assert max(map(len, lines_of(view))) <= NARROW and len(lines_of(view)) == 4
    for step in range(4, 90):
        view.step(step, ROW, 0.0)
    assert max(map(len, lines_of(view))) <= NARROW and len(lines_of(view)) == 4


def test_the_queue_is_that_of_the_newest_batch(view: LiveView) -> None:
    view.event(batch_taken(4, ages=(0,), response_tokens=5))
    assert lines_of(view)[3].endswith("0 in flight, 0 ready")


def test_the_cursor_is_never_left_hidden(view: LiveView, terminal: Terminal) -> None:
    """Also where the process is killed, and nothing can show it again."""
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")


def test_lines_appear_above_the_view_and_stay_whole(view: LiveView, terminal: Terminal) -> None:
    above = Above(view._console)
    print("in/a/folder a command", "x" * 200, file=above, end="")
    assert "a command" not in terminal.getvalue(), "a line is printed when it is whole"
    print(" [bold]y[/bold]", file=above, flush=True)
    print("many words " * 20, file=above)
    view.close()
    printed = CODES.sub("", terminal.getvalue())
    assert printed.count("many words") == 20 and max(map(len, re.findall(r"(?:many words ?)+", printed))) <= NARROW
    assert f"a command {'x' * 200} [bold]y[/bold]\n" in printed, "it can be copied"


def test_what_is_no_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    output = Output.on(stream)
    assert output.stream is stream and output.console is None and output.width == NARROW
    monkeypatch.setenv("TERM", "dumb")
    assert Output.on(Terminal()).console is None, "its cursor cannot move"


def test_a_wide_terminal_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for columns, width in {"132": 132, "40": NARROW}.items():
        monkeypatch.setenv("COLUMNS", columns)
        output = Output.on(Terminal())
        assert output.width == width and output.stream.isatty()
