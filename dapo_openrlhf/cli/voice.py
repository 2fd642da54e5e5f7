"""The lines that a command prints, whose reader may have left, and whose disk may be full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from dapo_openrlhf.heartbeat import Heartbeat, silence_of


class Voice:
    """Prints lines. When they can no longer be printed the command goes on without."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = False
        self.lost = False
        """Whether lines were lost that somebody wants to read; a command that lost some must not end with status 0."""

    def __call__(self, text: str) -> None:
        """Print and flush one line."""
        if not self._silent:
            try:
                print(text, file=self._stream, flush=True)
            except OSError as error:
                self._silent = True
                self.lost = not isinstance(error, BrokenPipeError)  # whose reader has left, as head does
                silence(self._stream, error)


@contextmanager
def telling_waits(stream: TextIO) -> Iterator[None]:
    """Say in ``stream`` what the block waits for, as often as :func:`silence_of` says."""
    with Heartbeat(Voice(stream), seconds=silence_of(stream)).beating():
        yield


def silence(stream: TextIO, error: OSError) -> None:
    """Discard what a stream still holds and whatever follows; otherwise Python tries again at its end, and complains."""
    if not isinstance(error, BrokenPipeError):
        print(f"the output cannot be printed, and is lost from here on: {error}", file=sys.stderr)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
