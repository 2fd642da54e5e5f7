"""A process with a user's environments, as its owner sees it: asked about many episodes at once, watched, ended (asyncio)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dapo_openrlhf.environments.messages import EnvironmentFailed
from dapo_openrlhf.environments.running import NOBODY, Running
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.rewards.guarded import GuardedProcess
from dapo_openrlhf.rewards.printed import Printed

TIMEOUT, ERROR, DIED = "environment_timeout", "environment_error", "environment_died"
"""Reasons of :class:`EnvironmentFailed`: the first two are the episode's own fault, the last one is not known to be."""

TICK_SECONDS = 0.05
"""Pause between two looks at a process."""
LONGEST_TICK = 4 * TICK_SECONDS
"""Most seconds that count between two looks: on a busy machine the owner may be late, for which no episode is at fault."""
CLOSE_SECONDS = 5.0
"""Seconds that an episode may take to stop; it holds up its process otherwise, which is ended."""
MOST_WAITING = 20
"""An answer is late, whoever computes, after this many times ``EnvironmentSettings.timeout``."""
MEBIBYTE = 1 << 20
LONGEST_ANSWER = 16 * MEBIBYTE
_CHILD = "dapo_openrlhf.environments.child"
_CLOSE = "close"


class EnvironmentUnavailable(RuntimeError):
    """The environment cannot be loaded; the message says why."""


@dataclass(slots=True)
class _Call:
    """A request without an answer yet."""

    episode: int
    do: str
    limit: float
    answer: asyncio.Future[dict[str, Any]] = field(default_factory=asyncio.Future)
    charged: float = 0.0
    """Seconds in which no other episode computed."""
    waited: float = 0.0

    def fail(self, reason: str, message: str, *, blameless: bool = False) -> None:
        """Raise the error where the call is awaited."""
        if not self.answer.done():
            self.answer.set_exception(EnvironmentFailed(reason, message, blameless))
            self.answer.exception()  # nobody may be waiting any more


class EnvironmentProcess:
    """One process from its start to its end; another takes its place then."""

    def __init__(self, settings: EnvironmentSettings) -> None:
        """Start the process; it loads the file meanwhile. Needs a running event loop."""
        self._settings = settings
        self._running = Running.create()
        self._printed = Printed()
        self._process = GuardedProcess(
            _CHILD,
            [settings.to_json(), str(self._running.handle)],
            self._printed,
            handles=[self._running.handle],
        )
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._most_memory = 0
        self.episodes: dict[int, int] = {}
        """The prompt of each open episode, by their numbers; the owner keeps it."""
        self.gone: str | None = None
        """How the process has ended, in words."""
        self._blameless: frozenset[int] = frozenset()  # open episodes that had no part in its end
        self._ending: asyncio.Future[None] | None = None
        self._watching = asyncio.ensure_future(self._watch())
        self.loading = asyncio.ensure_future(self._load())
        """Done once the file is loaded, with :class:`EnvironmentUnavailable` if it cannot be."""
        self.loading.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieves the error

    @property
    def loaded(self) -> bool:
        """Whether episodes can be opened."""
        return self.gone is None and self.loading.done()

    @property
    def pid(self) -> int:
        """Id of the process that runs the environments."""
        return self._process.computing

    async def ask(self, episode: int, do: str, **rest: object) -> dict[str, Any]:
        """Send a request about an episode and wait for the answer. Raises :class:`EnvironmentFailed`."""
        call = self._send(episode, do, self._settings.timeout, rest)
        return await call.answer

    def stop(self, episode: int) -> None:
        """Stop what an episode does, and forget it."""
        if self.gone is None:
            self._send(episode, _CLOSE, min(CLOSE_SECONDS, self._settings.timeout), {})

    def printed(self) -> list[str]:
        """Some of the lines that environments have printed since the last call."""
        return self._printed.take()

    async def end(self, words: str = "was closed") -> None:
        """End the process and all that it has started."""
        self._end(words, NOBODY, ERROR)
        if self._ending:
            await asyncio.shield(self._ending)

    def _send(self, episode: int, do: str, limit: float, rest: Mapping[str, object]) -> _Call:
        number, call = next(self._numbers), _Call(episode, do, limit)
        if self.gone is not None:
            call.fail(DIED, f"{self._settings.name}: its process {self.gone}", blameless=episode in self._blameless)
            return call
        self._calls[number] = call
        # A row out of Parquet may hold what JSON has no form for: dates, bytes.
        message = json.dumps({"request": number, "episode": episode, "do": do, **rest}, default=str)
        self._writer.write(message.encode() + b"\n")
        return call

    async def _load(self) -> None:
        try:
            connection = self._process.connection.dup()
            reader, self._writer = await asyncio.open_connection(sock=connection, limit=LONGEST_ANSWER)
            async with asyncio.timeout(self._settings.start_timeout):
                problem = await self._first_answer(reader)
        except TimeoutError:
            problem = f"did not load within {self._settings.start_timeout:g} s"
        if problem:
            await self.end(problem)
            raise EnvironmentUnavailable(f"train.agent_func_path: {self._settings.name} {problem}")
        self._most_memory = self._process.resident() + self._settings.memory * MEBIBYTE
        self._reading = asyncio.ensure_future(self._read(reader))

    async def _first_answer(self, reader: asyncio.StreamReader) -> str:
        """Why the file cannot be loaded; empty if it is."""
        while (answer := await _line(reader)) is not None:
            if answer.get("request") != 0:
                continue
            if "error" in answer:
                return f"does not load: {answer['error']}"
            self._process.computing = int(answer["answer"]["pid"])
            return ""
        return f"does not load: its process {await asyncio.to_thread(self._process.obituary)}"

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Pass answers on until the process has ended."""
        while (answer := await _line(reader)) is not None:
            call = self._calls.pop(answer.get("request", 0), None)
            if call is None or call.answer.done():
                continue
            if "error" in answer:
                call.fail(ERROR, f"{self._settings.name}: {answer['error']}")
            else:
                call.answer.set_result(answer.get("answer", {}))
        if self.gone is None:
            episode = self._running.episode
            self._end(await asyncio.to_thread(self._process.obituary), episode, ERROR)

    async def _watch(self) -> None:
        """Look at time and memory until the process has ended."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.gone is not None:
                return
            now = time.monotonic()
            self._printed.read()  # otherwise the process would block when the pipe is full
            running = self._running.episode
            if self._most_memory and self._process.resident() > self._most_memory:
                self._end(f"took over {self._settings.memory} MiB (environment.memory) and was ended", running, ERROR)
                return
            for number, call in [*self._calls.items()]:
                call.waited += now - before
                if running in (NOBODY, call.episode):
                    call.charged += min(now - before, LONGEST_TICK)
                self._check(number, call)
            before = now

    def _check(self, number: int, call: _Call) -> None:
        """End what has taken too long."""
        late = call.charged > call.limit
        if call.do == _CLOSE:
            if late:
                self._end("was ended, because an episode in it did not stop", call.episode, TIMEOUT)
            return
        if not late and call.waited <= MOST_WAITING * self._settings.timeout:
            return
        name = f"{self._settings.name}: {'reset' if call.do == 'open' else call.do}()"
        message = f"{name} took over {call.limit:g} s (environment.timeout)"
        if not late:
            message = (
                f"{name} waited over {call.waited:.0f} s while other episodes in its process computed; let it await what "
                "takes long, or have more processes (environment.workers)"
            )
        del self._calls[number]
        call.fail(TIMEOUT, message)
        self.stop(call.episode)

    def _end(self, words: str, culprit: int, reason: str) -> None:
        """Fail all calls, those of the episode ``culprit`` with ``reason``, and begin to end the process."""
        if self.gone is not None:
            return
        self.gone = words
        if culprit != NOBODY:
            guilty = self.episodes.get(culprit)
            self._blameless = frozenset(number for number, prompt in self.episodes.items() if prompt != guilty)
        for call in self._calls.values():
            own = call.episode == culprit
            during = f" during {'reset' if call.do == 'open' else call.do}()" if own else ""
            message = f"{self._settings.name}: its process {words}{during}"
            call.fail(reason if own else DIED, message, blameless=call.episode in self._blameless)
        self._calls.clear()
        self._ending = asyncio.ensure_future(self._clean_up())

    async def _clean_up(self) -> None:
        self._writer.transport.abort()
        await asyncio.to_thread(self._process.close)
        self._running.close()


async def _line(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None at the end. What an environment itself has written to the socket is passed over."""
    while True:
        try:
            line = await reader.readline()
        except (ConnectionError, ValueError):  # the latter for a line over the limit
            return None
        if not line:
            return None
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
