"""A judge: a child process that is asked about one response at a time, killed when late, and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from dapo_openrlhf import verifier
from dapo_openrlhf.judge.settings import JudgeSettings
from dapo_openrlhf.judge.sources import RULE
from dapo_openrlhf.types import Score

_CHILD = "dapo_openrlhf.judge.child"
MEMORY_CHECK_SECONDS = 0.02
MEBIBYTE = 1 << 20


class _TooMuchMemory(Exception):
    """The process has taken more than it may."""


class JudgeUnavailable(RuntimeError):
    """The rewards cannot be loaded at all: nothing can be judged with these settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What came of one response: a score, or an error that says nothing about the answer."""

    score: Score | None
    error: str | None
    reason: str
    """``judged``; ``reward_error``, ``reward_timeout`` or ``reward_died`` with an error."""
    seconds: float


class Judge:
    """One process and its deadline. Blocking, for one thread at a time; close it, or use it in a ``with``."""

    def __init__(self, settings: JudgeSettings, *, start_timeout: float = 120.0) -> None:
        """Start the process; ``start_timeout`` is for loading the rewards, in seconds."""
        self._settings = settings
        self._start_timeout = start_timeout
        self._tail_only = set(settings.sources) == {RULE}
        self._ready = False
        self._most_memory = 0
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process that judges now."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Return once the rewards are loaded. Raises :class:`JudgeUnavailable` with the reason."""
        if self._ready:
            return
        try:
            answer = self._receive(time.monotonic() + self._start_timeout)
            self._ready = "error" not in answer
            problem = f"the reward does not load: {answer.get('error')}"
        except TimeoutError:
            problem = f"the reward did not load within {self._start_timeout:g} s"
        except ConnectionError:
            problem = f"the reward process {self._obituary()} while loading the reward"
        if not self._ready:
            self._replace()  # whoever asks again may have better luck
            raise JudgeUnavailable(problem)
        self._most_memory = self._resident() + self._settings.memory * MEBIBYTE

    def judge(self, response: str, *, label: str, prompt: str = "") -> Judgement:
        """Judge one response to ``prompt``. Takes at most the deadline, and a start where the last process was lost."""
        self.wait_ready()
        started = time.monotonic()
        if self._tail_only:
            response, prompt = verifier.final_part(response, prompt), ""
        try:
            answer = self._ask(
                {"response": response, "prompt": prompt, "label": label}, started + self._settings.timeout
            )
        except TimeoutError:
            self._replace()
            error, reason = f"took over {self._settings.timeout:g} s (reward.timeout)", "reward_timeout"
        except _TooMuchMemory:
            self._replace()
            error, reason = f"took over {self._settings.memory} MiB (reward.memory)", "reward_error"
        except ConnectionError:
            error, reason = f"the reward process {self._obituary()}", "reward_died"
            self._replace()
        else:
            if answer.get("spent"):
                self._replace()
            error, reason = str(answer["error"]) if "error" in answer else "", "reward_error"
        seconds = time.monotonic() - started
        if error:
            return Judgement(score=None, error=error, reason=reason, seconds=seconds)
        found = answer.get("answer")
        score = Score(
            correct=bool(answer["correct"]),
            reward=float(str(answer["reward"])),
            answer=None if found is None else str(found),
        )
        return Judgement(score=score, error=None, reason="judged", seconds=seconds)

    def close(self) -> None:
        """End the process and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session, so its own group
        self._process.wait()
        self._connection.close()

    def _start(self) -> None:
        """Start a process; it loads while its parent does something else, and is waited for when it is needed."""
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _CHILD, str(theirs.fileno()), json.dumps(asdict(self._settings))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a user's reward prints
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._buffer = bytearray()
        self._request = 0
        self._ready = False

    def _replace(self) -> None:
        self.close()
        self._start()

    def _ask(self, question: dict[str, str], deadline: float) -> dict[str, object]:
        self._request += 1
        self._connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        self._connection.sendall(json.dumps({"request": self._request, **question}).encode() + b"\n")
        return self._receive(deadline)

    def _receive(self, deadline: float) -> dict[str, object]:
        """The answer to the newest request, 0 being the start; what else is written there is none.

        Raises as :meth:`_line` does.
        """
        while True:
            with contextlib.suppress(ValueError):
                answer = json.loads(self._line(deadline))
                if isinstance(answer, dict) and answer.get("request") == self._request:
                    return answer

    def _line(self, deadline: float) -> bytes:
        """One line of the process's. Raises ``TimeoutError``, ``ConnectionError`` when it has ended, ``_TooMuchMemory``.

        Memory is watched from here, because inside, running out of it is an exception that libraries swallow.
        """
        while (end := self._buffer.find(b"\n")) < 0:
            self._connection.settimeout(max(min(deadline - time.monotonic(), MEMORY_CHECK_SECONDS), 1e-3))
            try:
                chunk = self._connection.recv(65536)
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise
                if self._ready and self._resident() > self._most_memory:
                    raise _TooMuchMemory from None
                continue
            if not chunk:
                raise ConnectionError("the process has closed its end")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _resident(self) -> int:
        """Bytes of memory the process holds; 0 when it has ended."""
        try:
            with open(f"/proc/{self._process.pid}/statm") as statm:
                return int(statm.read().split()[1]) * resource.getpagesize()
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def _obituary(self) -> str:
        """How the process ended."""
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def judge_group(judge: Judge, responses: Sequence[str], *, label: str, prompt: str) -> Iterator[Judgement]:
    """Judge responses to one prompt, in order, up to and including the first error."""
    for response in responses:
        judgement = judge.judge(response, label=label, prompt=prompt)
        yield judgement
        if judgement.score is None:
            return
