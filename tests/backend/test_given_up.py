"""A loading that is given up leaves parts of two versions in the model: nothing is generated until one is loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from patience import HANG_SECONDS

from dapo_openrlhf.backend.messages import TransferAborted
from dapo_openrlhf.pipeline.ports import Sampling

pytestmark = pytest.mark.real  # imports vLLM

SAMPLING = Sampling(n=1, max_new_tokens=4, temperature=1.0, top_p=1.0)


class Core:
    """Generates without end, and counts its steps."""

    def __init__(self, *arguments: Any) -> None:
        self.engine_core = SimpleNamespace(batch_queue=None)
        self.steps = 0
        self.stepped = threading.Event()

    def add_request(self, request: Any) -> None:
        pass

    def get_output(self) -> SimpleNamespace:
        self.steps += 1
        self.stepped.set()
        return SimpleNamespace(outputs=[])

    def wait(self) -> None:
        """For another step."""
        self.stepped.clear()
        assert self.stepped.wait(HANG_SECONDS)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    from dapo_openrlhf.backend.engine import loop

    model = SimpleNamespace(get_vocab_size=lambda: 99, max_model_len=99)
    core = Core()
    monkeypatch.setattr(loop, "start_core", lambda arguments: (core, model))
    yield core
    core.get_output = lambda: threading.Event().wait()  # type: ignore[assignment,return-value]  # its thread rests


@pytest.mark.parametrize("in_flight", [True, False])
def test_nothing_is_generated_from_parts_of_two_versions(core: Core, in_flight: bool) -> None:
    from dapo_openrlhf.backend.engine.loop import EngineLoop
    from dapo_openrlhf.backend.engine.rollout_worker import WeightUpdates

    loop = EngineLoop({}, name="engine 0", stop_ids=[], updates=WeightUpdates(in_flight=in_flight))
    loop.start().result(HANG_SECONDS)

    def give_up(_: Any) -> int:
        raise TransferAborted("engine 1 died")

    with_requests = loop.load_weights(1, give_up)
    with pytest.raises(TransferAborted):
        with_requests.result(HANG_SECONDS)
    loop.generate("group", [1, 2], SAMPLING)
    for _ in range(3):
        assert loop.between_steps(lambda core: core.steps).result(HANG_SECONDS) == 0  # type: ignore[attr-defined]
    with pytest.raises(TransferAborted):
        loop.load_weights(1, give_up).result(HANG_SECONDS)
    assert core.steps == 0
    loop.load_weights(1, lambda _: 0).result(HANG_SECONDS)
    core.wait()


def test_a_loading_that_is_given_up_between_steps_stops_them(core: Core) -> None:
    from dapo_openrlhf.backend.engine.loop import EngineLoop

    loop = EngineLoop({}, name="engine 0", stop_ids=[])
    loop.start().result(HANG_SECONDS)
    loop.generate("group", [1, 2], SAMPLING)
    core.wait()
    at: list[int] = []

    def give_up(core: Any) -> int:
        at.append(core.steps)
        raise TransferAborted("engine 1 died")

    with pytest.raises(TransferAborted):
        loop.load_weights(1, give_up).result(HANG_SECONDS)
    for _ in range(3):
        assert loop.between_steps(lambda core: core.steps).result(HANG_SECONDS) == at[0]  # type: ignore[attr-defined]
    loop.load_weights(1, lambda _: 0).result(HANG_SECONDS)
    core.wait()
