"""What holds for every test: nothing depends on how fast or how busy the machine is, on chance, or on other tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

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
    after = {name: after[name] for name in before}  # a test may be the first to import torch
    if compiler != (COMPILER in sys.modules):  # torch raises the limit once it is imported, in whichever test that is
        del before[RECURSION], after[RECURSION]
    if request.node.get_closest_marker("real"):  # Ray, started in this process, leaves its handler behind
        del before[HANDLERS], after[HANDLERS]
    assert after == before, "this test left the process changed for all tests after it"


@pytest.fixture(scope="module", autouse=True)
def _transformers_classes_stay_transformers_own() -> Iterator[None]:
    """Packages that change transformers' classes in place, as vLLM does, would decide what a later file's models compute."""
    before = {*_changed_classes()}
    yield
    assert {*_changed_classes()} - before == set(), (
        "this file left classes of transformers changed for all files after it"
    )


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
        # Packages add to it themselves once they are imported.
        "where modules are looked for": [path for path in sys.path if "site-packages" not in path],
        **_torch(),
    }


def _torch() -> dict[str, object]:
    """Of a process that has imported torch, what decides how its tensors are computed."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "threads of torch": torch.get_num_threads(),
        "data type of new tensors": torch.get_default_dtype(),
        "device of new tensors": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


OWN = {"transformers", "torch", "builtins", "typing", "abc", "collections", "dataclasses", "enum"}


def _changed_classes() -> Iterator[str]:
    """Loaded classes of transformers' models with bases or methods that another package has put in."""
    for name, module in list(sys.modules.items()):
        if not (name.startswith("transformers.models.") and ".modeling_" in name):
            continue
        for cls in [*vars(module).values()]:
            if not (isinstance(cls, type) and cls.__module__ == name):
                continue
            makers = [base.__module__ for base in cls.__bases__]
            makers += [f.__globals__["__name__"] for f in vars(cls).values() if isinstance(f, FunctionType)]
            yield from (f"{name}.{cls.__name__} by {maker}" for maker in makers if maker.partition(".")[0] not in OWN)


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
