"""A command never is silent for long, whatever it waits for; in virtual time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

from patience import HANG_SECONDS

from dapo_openrlhf.heartbeat import LOG_SECONDS, TERMINAL_SECONDS, Heartbeat, silence_of, waiting_for


class Clock:
    """Stands still, unless the test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def live(heart: Heartbeat, clock: Clock, until: float) -> None:
    """Beat as its thread would."""
    while clock.now < until:
        clock.now = min(until, clock.now + heart.beat())
        heart.beat()


def test_silence_is_broken_in_time_by_the_oldest_waits() -> None:
    clock, said = Clock(), list[tuple[float, str]]()
    heart = Heartbeat(lambda text: said.append((clock.now, text)), seconds=10.0, clock=clock)
    late = ["engine 0", "trainer rank 1"]
    with waiting_for(lambda: f"the start of {', '.join(late)}", clock):
        live(heart, clock, 25.0)
        late.pop()
        with waiting_for("something else", clock):
            live(heart, clock, 30.0)
    live(heart, clock, 100.0)
    assert said == [
        (10.0, "still waiting for the start of engine 0, trainer rank 1 (10 s)"),
        (20.0, "still waiting for the start of engine 0, trainer rank 1 (20 s)"),
        (30.0, "still waiting for the start of engine 0 (30 s); something else (5 s)"),
    ]


def test_other_words_put_it_off() -> None:
    clock, said = Clock(), list[float]()
    heart = Heartbeat(lambda text: said.append(clock.now), seconds=10.0, clock=clock)
    with waiting_for("a batch", clock):
        for until in (9.0, 18.0, 27.0):
            live(heart, clock, until)
            heart.say("step")
        live(heart, clock, 40.0)
    assert said == [9.0, 18.0, 27.0, 37.0]


def test_a_log_is_kept_short() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert (silence_of(Terminal()), silence_of(io.StringIO())) == (TERMINAL_SECONDS, LOG_SECONDS) == (10.0, 60.0)


def test_its_thread_beats_and_ends() -> None:
    beaten = threading.Event()
    threads = threading.active_count()
    with waiting_for("it"), Heartbeat(lambda text: beaten.set(), seconds=1e-9).beating():
        assert beaten.wait(HANG_SECONDS)
    assert threading.active_count() == threads


SHORT = "import sys; from dapo_openrlhf import heartbeat, __main__; heartbeat.LOG_SECONDS = 0.05; sys.exit(__main__.entry())"


def run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SHORT, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def first_line_with(words: str, process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return next(line for line in process.stderr if words in line)


def test_verify_says_how_far_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    open('go').read()\n    return {'rewards': [1.0]}\n"
    )
    (tmp_path / "r.jsonl").write_text('{"response": "1", "answer": "1"}\n')
    with run(tmp_path, "verify", "r.jsonl", "--reward", "reward.py") as process:
        assert "responses to be judged, 0 of 1 are (" in first_line_with("judged", process)
        (tmp_path / "go").write_text("")
        assert "1 right" in process.communicate()[0]
    assert process.returncode == 0


def test_prepare_says_what_it_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl.pipe")
    (tmp_path / "rows.jsonl").write_text('{"input": "1+1=", "label": "2"}\n')
    (tmp_path / "out.jsonl").symlink_to("rows.jsonl.pipe")
    with run(tmp_path, "prepare", "rows.jsonl", "--output", "out.jsonl") as process:
        assert first_line_with("out.jsonl", process).startswith("still waiting for out.jsonl to be written (")
        (tmp_path / "rows.jsonl.pipe").read_text()
        process.communicate()
    assert process.returncode == 0
