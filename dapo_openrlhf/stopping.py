"""How signals end a command: one handler for all of them, in force from the first line to the last.

``with handled():`` surrounds a command. A signal then raises :class:`Stopped` in the command, or is passed to the
listener, if there is one at that time. :func:`reinstall` overrules libraries that install handlers of their own. A
second signal ends the process at once, with all that it has started, even while the main thread is in foreign code.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a command, with exit status 128 plus the signal's number."""
SAVING = signal.SIGUSR1
"""The signal that a batch system sends some time before it ends a job; see :func:`listening`."""

SAME_SECONDS = 0.25
"""Seconds within which the same signal again is the same request: ``timeout`` signals a command and its group."""
STUCK_SECONDS = 2.0
"""Seconds after which a second signal that the main thread has not heard of ends the process nevertheless."""

NUDGE = signal.SIGURG
"""Signal that wakes the main thread; nothing else uses it here, and by default it does nothing."""
NUDGE_SECONDS = (0.2, 0.5, 1.0)
"""When the main thread is woken after a signal that it has not heard of. One that comes in the moment before a system call
that waits does not end the wait."""

NOTHING_KEPT = "what it was to write is whole, or as it was before; the same command begins anew"

Listener = Callable[[signal.Signals], None]


class Stopped(BaseException):
    """A signal asked the command to end. Like ``KeyboardInterrupt``, handlers of errors should not catch it."""

    def __init__(self, number: signal.Signals, words: str = "") -> None:
        """``words``: tells the user what is kept and how to resume."""
        super().__init__(words)
        self.number = number
        self.words = words
        self._said = False

    def say(self) -> None:
        """Print the one line on standard error, if that has not been done yet and anybody can read it."""
        if not self._said:
            self._said = True
            with suppress(OSError):
                print(self, file=sys.stderr, flush=True)

    @property
    def status(self) -> int:
        """The exit status by which shells and batch systems recognise the signal."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {self.number.name}: {self.words or NOTHING_KEPT}"


class _Handling:
    """The handling of signals during one command.

    Python runs handlers in the main thread, between two of its instructions. A thread hears of signals at once, for as
    long as the main thread is in foreign code: libraries take seconds to import, or hang.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.words_at_once: list[str] = []
        """Not empty where already the first signal ends the process, with the last of these words."""
        self._answered = False
        self._last: tuple[int, float] = (0, 0.0)
        self._leaving = threading.Lock()
        """Held by the thread that ends the process; it is never released."""
        self._before = {number: signal.getsignal(number) for number in (*ENDING, SAVING, NUDGE)}
        self._active = [number for number in (*ENDING, SAVING) if self._before[number] != signal.SIG_IGN]
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        self.install()

    def install(self) -> None:
        for number in self._active:
            signal.signal(number, self._handle)
        signal.signal(NUDGE, lambda number, frame: None)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed from Python
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._leaving.locked():
            return
        last, self._last = self._last, (number, time.monotonic())
        if number == last[0] and self._last[1] - last[1] < SAME_SECONDS:
            return
        if self.listeners:
            self.listeners[-1](signal.Signals(number))
        elif number in ENDING:
            if self._answered or self.words_at_once:
                self._leave(number)
            self._answered = True
            raise Stopped(signal.Signals(number))

    def _watch(self) -> None:
        asked, number, since, nudges = 0, 0, 0.0, 0
        while True:
            unheard = self._last[1] < since - STUCK_SECONDS / 2  # the handler may have run before this
            leaves = since + STUCK_SECONDS if unheard and asked > 1 else math.inf
            nudge = since + NUDGE_SECONDS[nudges] if unheard and nudges < len(NUDGE_SECONDS) else math.inf
            until = min(leaves, nudge)
            left = None if until == math.inf else max(0.0, until - time.monotonic())
            if not select.select([self._reader], [], [], left)[0]:
                if leaves <= nudge:
                    self._leave(number)
                signal.pthread_kill(threading.main_thread().ident or 0, NUDGE)
                nudges += 1
                continue
            for heard in os.read(self._reader, 512):
                if heard == 0:
                    return
                if heard in ENDING and heard in self._active:
                    again = heard == number and time.monotonic() - since < SAME_SECONDS
                    asked, number, since, nudges = asked + (not again), heard, time.monotonic(), 0
                    if self.words_at_once:
                        self._leave(number)

    def _leave(self, number: int) -> NoReturn:
        """End this process and all its descendants at once."""
        import psutil

        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # for the other thread to end the process
        words = self.words_at_once[-1] if self.words_at_once else "at once, as it was asked twice"
        os.write(2, f"{Stopped(signal.Signals(number), words)}\n".encode())
        kill_all(psutil.Process().children(recursive=True))
        os._exit(128 + number)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill these processes, except those that have ended already."""
    import psutil

    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


_handlings: list[_Handling] = []
"""The handling that is in force, if there is one."""


@contextmanager
def handled() -> Iterator[None]:
    """Handle signals, except those that are ignored, as under nohup. Restores the old handlers at the end.

    The one line of a :class:`Stopped` is said before that: a second signal in this moment may end the process without a word.

    A signal that comes while Python's own ``threading`` waits for a lock may leave the lock released; the lock's ``with``
    block then raises "release unlocked lock" in place of :class:`Stopped`, which is raised here all the same.
    """
    _handlings.append(_Handling())
    try:
        yield
    except (Stopped, RuntimeError) as error:
        if (stopped := _stopped_within(error)) is None:
            raise
        stopped.say()
        raise stopped from None
    finally:
        _handlings.pop().close()


def _stopped_within(error: Stopped | RuntimeError) -> Stopped | None:
    """The error itself, or the :class:`Stopped` in whose handling it was raised; None if there was none."""
    before: BaseException | None = error
    while before is not None and not isinstance(before, Stopped):
        before = before.__context__
    return before


def exit_outside() -> None:
    """End the process with a signal's exit status where it comes outside of :func:`handled`, such as while Python ends.

    By default SIGINT then prints a traceback. For processes that are a command, and nothing else.
    """
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(128 + number))


def reinstall() -> None:
    """Restore the handler that a library has replaced; does nothing outside of :func:`handled`."""
    for handling in _handlings:
        handling.install()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Pass signals to ``listener``, in the main thread between any two instructions, instead of raising
    :class:`Stopped`.

    Without a listener :data:`SAVING` does nothing, so that it never kills a command.
    """
    for handling in _handlings[-1:]:
        handling.listeners.append(listener)
    try:
        yield
    finally:
        for handling in _handlings[-1:]:
            handling.listeners.remove(listener)


@contextmanager
def nothing_to_lose(words: str = NOTHING_KEPT) -> Iterator[None]:
    """Let already the first signal end the process at once, even within foreign code, for a block that writes nothing.

    Libraries that are imported may catch whatever is raised in them, and lose a :class:`Stopped`.
    """
    for handling in _handlings[-1:]:
        handling.words_at_once.append(words)
    try:
        yield
    finally:
        for handling in _handlings[-1:]:
            handling.words_at_once.pop()


@contextmanager
def telling(words: Callable[[], str]) -> Iterator[None]:
    """Give a :class:`Stopped` of the block its words, unless it has some."""
    try:
        yield
    except Stopped as stopped:
        stopped.words = stopped.words or words()
        raise
