"""What holds for every test: nothing depends on how fast or how busy the machine is, on chance, or on other tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from reserved_port import reserved_port

settings.register_profile("any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _process_stays_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that changes this process for good would decide what later tests see."""
    before, compiler = _process(), COMPILER in sys.modules
    yield
    after = _process()
    if compiler != (COMPILER in sys.modules):  # torch raises the limit once it is imported, in whichever test that is
        del before[RECURSION], after[RECURSION]
    if request.node.get_closest_marker("real"):  # Ray, started in this process, leaves its handler behind
        del before[HANDLERS], after[HANDLERS]
    assert after == before, "this test left the process changed for all tests after it"


@pytest.fixture
def port() -> Iterator[int]:
    """For processes that meet."""
    with reserved_port() as port:
        yield port


HANDLERS = "handlers of signals"
RECURSION = "recursion limit"
COMPILER = "torch._dynamo"


def _process() -> dict[str, object]:
    return {
        "longest integer that becomes text": sys.get_int_max_str_digits(),
        RECURSION: sys.getrecursionlimit(),
        "working directory": Path.cwd(),
        HANDLERS: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "mask of new files": _umask(),
    }


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
