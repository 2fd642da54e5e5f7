"""The process in which a user's environment runs (``process.py`` starts it with ``python -m``).

It reads requests from a socket, each a line of JSON, and answers each with a line, in the order in which the episodes get
done. All episodes share one event loop. Its owner enforces deadlines and memory; ``guard.py`` ends what it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import os
import resource
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any

from dapo_openrlhf.environments.answers import BadAnswer, checked_observation, checked_step
from dapo_openrlhf.environments.loading import MakeEnvironment, load_environment
from dapo_openrlhf.environments.messages import Action, Environment
from dapo_openrlhf.environments.running import NOBODY, Running, Traced
from dapo_openrlhf.environments.settings import EnvironmentSettings
from dapo_openrlhf.rewards import guard
from dapo_openrlhf.rewards.printed import flush_output
from dapo_openrlhf.rewards.replies import excerpt
from dapo_openrlhf.types import Prompt

LONGEST_MESSAGE = 300
LONGEST_REQUEST = 1 << 30
_EPISODE = contextvars.ContextVar("episode", default=NOBODY)


class Episodes:
    """The open episodes of this process."""

    def __init__(self, make: MakeEnvironment, file: str, send: Callable[[dict[str, object]], None]) -> None:
        self._make, self._file, self._send = make, file, send
        self._process = os.getpid()
        self._environments: dict[int, Environment] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Future[None]] = set()

    def take(self, request: Mapping[str, Any]) -> None:
        """Begin to do what a request asks for."""
        number, episode = request["request"], request["episode"]
        match request["do"]:
            case "open":
                self._begin(number, episode, self._open(episode, Prompt(**request["prompt"])))
            case "step":
                self._begin(number, episode, self._step(episode, Action(**request["action"])))
            case _:
                closing = asyncio.ensure_future(self._close(number, episode))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def _begin(self, number: int, episode: int, work: Coroutine[Any, Any, dict[str, object]]) -> None:
        context = contextvars.copy_context()
        context.run(_EPISODE.set, episode)
        answering = self._answer(number, episode, work)
        self._tasks[episode] = asyncio.get_running_loop().create_task(answering, context=context)

    async def _open(self, episode: int, prompt: Prompt) -> dict[str, object]:
        environment = self._make()
        if not isinstance(environment, Environment):
            raise BadAnswer(f"Environment() made {excerpt(environment)}, which lacks reset(prompt) or step(action)")
        observation = checked_observation(await settled(environment.reset(prompt)))
        self._environments[episode] = environment
        return asdict(observation)

    async def _step(self, episode: int, action: Action) -> dict[str, object]:
        step = checked_step(await settled(self._environments[episode].step(action)))
        if step.done:
            del self._environments[episode]
        return asdict(step)

    async def _close(self, request: int, episode: int) -> None:
        self._environments.pop(episode, None)
        if task := self._tasks.pop(episode, None):
            task.cancel()
            await asyncio.wait([task])
        self._send({"request": request})

    async def _answer(self, number: int, episode: int, work: Coroutine[Any, Any, dict[str, object]]) -> None:
        answer: dict[str, object] = {"request": number}
        try:
            answer["answer"] = await work
        except (
            Exception,
            asyncio.CancelledError,
            SystemExit,
            KeyboardInterrupt,
        ) as error:  # a user's code may raise any
            answer["error"] = explained(error, self._file)
            self._environments.pop(episode, None)
        if os.getpid() != self._process:
            os._exit(0)  # a process that the environment forked: it must not answer too
        self._tasks.pop(episode, None)
        flush_output()
        self._send(answer)


async def settled(answer: Any) -> Any:
    """The answer of a method that may be ``async`` or plain."""
    return await answer if inspect.isawaitable(answer) else answer


def explained(error: BaseException, file: str) -> str:
    """Kind, message and place of an exception, short and printable; the place is the line of the user's file."""
    try:
        words = str(error)[:LONGEST_MESSAGE]
    except Exception:  # a user's error may raise anything
        words = "a message that cannot be read"
    if not isinstance(error, BadAnswer):
        places = traceback.extract_tb(error.__traceback__)
        own = [(place.filename, place.lineno) for place in places if place.filename == file]
        if isinstance(error, SyntaxError) and error.filename:
            words, own = error.msg, [(error.filename, error.lineno)]
        found = own or [(place.filename, place.lineno) for place in places]
        place = f" ({os.path.basename(found[-1][0])}, line {found[-1][1]})" if found else ""
        words = f"{type(error).__name__}: {words}{place}"
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)


async def serve(connection: socket.socket, make: MakeEnvironment, file: str) -> None:
    """Answer requests until the owner closes the socket."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=LONGEST_REQUEST)

    def send(answer: dict[str, object]) -> None:
        writer.write(json.dumps(answer).encode() + b"\n")

    episodes = Episodes(make, file, send)
    send({"request": 0, "answer": {"pid": os.getpid()}})
    while line := await reader.readline():
        episodes.take(json.loads(line))


def main(handle: int, running: Running, settings: EnvironmentSettings) -> None:
    """Load the user's file and serve its environments."""
    threading.Thread(target=guard.end_with_owner, args=(handle,), daemon=True).start()
    os.set_inheritable(handle, False)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def traced(loop: asyncio.AbstractEventLoop, inside: Any, **options: Any) -> asyncio.Task[Any]:
        context = options.get("context")
        episode = context[_EPISODE] if context is not None and _EPISODE in context else _EPISODE.get()
        if episode != NOBODY and inspect.iscoroutine(inside):
            inside = Traced(inside, running, episode)
        return asyncio.Task(inside, loop=loop, **options)

    loop.set_task_factory(traced)
    with socket.socket(fileno=handle) as connection:
        try:
            make = load_environment(settings.file)
        except (Exception, SystemExit) as error:  # a user's file may raise anything; nothing is run then
            flush_output()
            words = str(error) if isinstance(error, ImportError) and settings.file in str(error) else ""
            message = {"request": 0, "error": words or explained(error, settings.file)}
            connection.sendall(json.dumps(message).encode() + b"\n")
            return
        flush_output()
        with contextlib.suppress(ConnectionError):  # the owner has gone
            loop.run_until_complete(serve(connection, make, settings.file))
    os._exit(0)  # threads and handlers that the environment has left do not hold up the end


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard.fork_guarded(int(sys.argv[1]))
    main(int(sys.argv[1]), Running(int(sys.argv[3])), EnvironmentSettings.from_json(sys.argv[2]))
