"""A reward process: a child that is asked about responses, killed when late, and replaced."""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Self

from dapo_openrlhf.rewards import verifier
from dapo_openrlhf.rewards.guarded import GuardedProcess
from dapo_openrlhf.rewards.printed import Printed
from dapo_openrlhf.rewards.question import Question
from dapo_openrlhf.rewards.settings import RewardSettings
from dapo_openrlhf.types import Score

_CHILD = "dapo_openrlhf.rewards.child"
MEMORY_CHECK_SECONDS = 0.02
SERVER_AWAY = "reward_server"
"""Reason of a response whose score a reward server could not be asked for."""
MEBIBYTE = 1 << 20
MOST_ANSWER = 16 * MEBIBYTE
"""Most bytes that are kept of one answer, so that code which writes to the process's socket cannot fill this one's
memory."""


_TOO_MUCH_WRITTEN = f"over {MOST_ANSWER // MEBIBYTE} MiB were written where one answer belongs"


class _TooMuchWritten(Exception):
    """The process has written more than any answer has."""


class _TooMuchMemory(Exception):
    """The process has taken more memory than it may."""


class RewardUnavailable(RuntimeError):
    """The rewards cannot be loaded at all, so nothing can be scored with these settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The result for one response: a score, or an error that says nothing about the answer."""

    score: Score | None
    error: str | None
    timed_out: bool = False
    """With :data:`SERVER_AWAY`: whether the server took too long, which may be due to this response only."""
    reason: str
    """``judged`` with a score; ``reward_error``, ``reward_timeout``, ``reward_died`` or :data:`SERVER_AWAY` with an
    error."""
    seconds: float


class RewardProcess:
    """One reward process and its deadline. Calls block. Use it from one thread at a time; close it or use ``with``."""

    def __init__(
        self, settings: RewardSettings, *, start_timeout: float = 120.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the process; ``start_timeout`` limits the loading of the rewards, in seconds of ``clock``."""
        self._settings = settings
        self._start_timeout = start_timeout
        self._clock = clock
        self._tail_only = not any(source.reads_queries for source in settings.sources)
        self._ready = False
        self._most_memory = 0
        names = [source.short_name for source in settings.sources]
        self._name = "" if self._tail_only else f"{', '.join(names)}: "  # several cannot be told apart
        self._printed = Printed()
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Id of the process that scores now; until it is ready, that of its outer guard."""
        return self._process.computing

    def wait_ready(self) -> None:
        """Return once the rewards are loaded. Raises :class:`RewardUnavailable` with the reason."""
        if self._ready:
            return
        try:
            answer = self._receive(self._clock() + self._start_timeout)
            self._ready = "error" not in answer
            self._process.computing = int(str(answer.get("pid", self._process.computing)))
            problem = f"the reward does not load: {answer.get('error')}"
        except TimeoutError:
            problem = f"the reward did not load within {self._start_timeout:g} s"
        except ConnectionError:
            problem = f"the reward process {self._process.obituary()} while loading the reward"
        except _TooMuchWritten:
            problem = f"{_TOO_MUCH_WRITTEN} while loading the reward"
        if not self._ready:
            self._replace()  # the next attempt may succeed
            raise RewardUnavailable(problem)
        self._most_memory = self._process.resident() + self._settings.memory * MEBIBYTE

    def score(self, response: str, *, label: object, prompt: str = "") -> Scored:
        """Score one response to ``prompt``, within the deadline plus a start where the last process was lost."""
        query = "" if self._tail_only else prompt + response
        (scored,) = self.score_all(Question(responses=[response], queries=[query], prompt=prompt, label=label))
        return scored

    def score_all(self, question: Question) -> list[Scored]:
        """Score responses together up to the first error, which is then last. The deadline holds for each response."""
        self.wait_ready()
        started = self._clock()
        scores: list[Score] = []
        error, reason, timed_out = "", "reward_error", False
        try:
            answer = self._ask(self._sent(question), started + self._settings.timeout * len(question))
        except TimeoutError:
            self._replace()
            error, reason = self._late(len(question)), "reward_timeout"
        except _TooMuchMemory:
            self._replace()
            error = f"{self._name}took over {self._settings.memory} MiB (reward.memory)"
        except _TooMuchWritten:
            self._replace()
            error = f"{self._name}{_TOO_MUCH_WRITTEN}"
        except ConnectionError:
            error, reason = f"{self._name}the reward process {self._process.obituary()}", "reward_died"
            self._replace()
        else:
            if answer.get("spent"):
                self._replace()
            elif self._leaks():
                self._printed.note(
                    f"the reward process held over {self._settings.memory} MiB and was replaced (reward.memory)"
                )
                self._replace()
            scores = _scores(answer["scores"])
            error = str(answer.get("error", ""))
            reason = SERVER_AWAY if answer.get("away") else reason
            timed_out = bool(answer.get("timed_out"))
        self._printed.read()
        seconds = (self._clock() - started) / max(1, len(scores) + bool(error))
        judged = [Scored(score=score, error=None, reason="judged", seconds=seconds) for score in scores]
        if error:
            judged.append(Scored(score=None, error=error, timed_out=timed_out, reason=reason, seconds=seconds))
        return judged

    def printed(self) -> list[str]:
        """Some of the lines that the rewards have printed since the last call."""
        return self._printed.take()

    def _sent(self, question: Question) -> dict[str, object]:
        """The part of a question that the rewards need: for the rule only the end of a response, to copy less."""
        if self._tail_only:
            tails = [verifier.final_part(response, question.prompt) for response in question.responses]
            question = Question(responses=tails, queries=[""] * len(tails), prompt="", label=question.label)
        return asdict(question)

    def _late(self, responses: int) -> str:
        seconds = f"{self._settings.timeout * responses:g} s"
        return (
            f"{self._name}took over {seconds}{f' for {responses} responses' if responses > 1 else ''} (reward.timeout)"
        )

    def close(self) -> None:
        """End the process and all processes that it started."""
        self._process.close()

    def _start(self) -> None:
        """Start a process without waiting for it to load; it is waited for when it is needed."""
        self._process = GuardedProcess(_CHILD, [self._settings.to_json()], self._printed)
        self._buffer = bytearray()
        self._request = 0
        self._ready = False

    def _replace(self) -> None:
        self.close()
        self._start()

    def _ask(self, question: dict[str, object], deadline: float) -> dict[str, object]:
        self._request += 1
        self._process.connection.settimeout(max(deadline - self._clock(), 1e-3))
        # A row out of Parquet may hold what JSON has no form for: dates, bytes.
        message = json.dumps({"request": self._request, "question": question}, default=str)
        self._process.connection.sendall(message.encode() + b"\n")
        return self._receive(deadline)

    def _receive(self, deadline: float) -> dict[str, object]:
        """The answer to the newest request, where request 0 is the start; anything else on the socket is ignored.

        Raises the same errors as :meth:`_line`.
        """
        while True:
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(self._line(deadline))
                if isinstance(answer, dict) and answer.get("request") == self._request:
                    return answer
            if self._clock() >= deadline:  # it may write without end
                raise TimeoutError

    def _line(self, deadline: float) -> bytes:
        """One line from the process. Raises ``TimeoutError``, ``ConnectionError`` when it has ended,
        ``_TooMuchMemory``, ``_TooMuchWritten``.

        Memory is watched from outside, because inside the process libraries swallow the exception of running out of it.
        """
        while (end := self._buffer.find(b"\n")) < 0:
            seconds = max(min(deadline - self._clock(), MEMORY_CHECK_SECONDS), 0)
            ready = self._wait_for_words(seconds)
            if self._printed.reader in ready:
                self._printed.read()  # otherwise the process would block when the pipe is full
            if self._process.connection.fileno() not in ready:
                if self._clock() >= deadline:
                    raise TimeoutError
                if self._leaks():
                    raise _TooMuchMemory
                continue
            chunk = self._process.connection.recv(65536)
            if not chunk:
                raise ConnectionError("the process has closed its end")
            self._buffer += chunk
            if len(self._buffer) > MOST_ANSWER:
                raise _TooMuchWritten
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _wait_for_words(self, seconds: float) -> set[int]:
        """Wait up to ``seconds`` until the socket or the pipe of printed lines has data or has ended; returns which."""
        poll = select.poll()
        poll.register(self._process.connection, select.POLLIN)
        if self._printed.open_ended:
            poll.register(self._printed.reader, select.POLLIN)
        return {handle for handle, _ in poll.poll(1000 * seconds)}

    def _leaks(self) -> bool:
        return self._ready and self._process.resident() > self._most_memory


def _scores(values: object) -> list[Score]:
    """The scores in a message of the process."""
    assert isinstance(values, list)
    return [
        Score(
            correct=bool(v["correct"]), reward=float(v["reward"]), score=v["score"], logs=v["logs"], answer=v["answer"]
        )
        for v in values
    ]


def score_group(process: RewardProcess, question: Question, *, at_once: int = 1, begin: int = 0) -> Iterator[Scored]:
    """Score responses to one prompt from ``begin`` on, ``at_once`` per call, up to and including the first error."""
    for first in range(begin, len(question), at_once):
        part = slice(first, first + at_once)
        for scored in process.score_all(
            replace(question, responses=question.responses[part], queries=question.queries[part])
        ):
            yield scored
            if scored.score is None:
                return
