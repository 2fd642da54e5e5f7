"""How signals end a command: one handler for all of them, in force from the first line to the last.

``with handled():`` surrounds a command. A signal then raises :class:`Stopped` in the command, or is passed to the
listener, if there is one at that time. :func:`reinstall` overrules libraries that install handlers of their own.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a command, with exit status 128 plus the signal's number."""
SAVING = signal.SIGUSR1
"""The signal that a batch system sends some time before it ends a job; see :func:`listening`."""

Listener = Callable[[signal.Signals], None]

_listeners: list[Listener] = []
_active: list[signal.Signals] = []


class Stopped(BaseException):
    """A signal asked the command to end. Like ``KeyboardInterrupt``, handlers of errors should not catch it."""

    def __init__(self, number: signal.Signals, words: str = "") -> None:
        """``words``: tells the user what is kept and how to resume."""
        super().__init__(words)
        self.number = number
        self.words = words

    @property
    def status(self) -> int:
        """The exit status by which shells and batch systems recognise the signal."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {self.number.name}" + (f": {self.words}" if self.words else "")


@contextmanager
def handled() -> Iterator[None]:
    """Handle signals, except those that are ignored, as under nohup. Restores the old handlers at the end."""
    before = {number: signal.getsignal(number) for number in (*ENDING, SAVING)}
    _active[:] = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    reinstall()
    try:
        yield
    finally:
        _active.clear()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed from Python


def reinstall() -> None:
    """Restore the handler that a library has replaced; does nothing outside of :func:`handled`."""
    for number in _active:
        signal.signal(number, _handle)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Pass signals to ``listener``, in the main thread between any two instructions, instead of raising
    :class:`Stopped`.

    Without a listener :data:`SAVING` does nothing, so that it never kills a command.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _handle(number: int, frame: FrameType | None) -> None:
    if _listeners:
        _listeners[-1](signal.Signals(number))
    elif number in ENDING:
        raise Stopped(signal.Signals(number))
