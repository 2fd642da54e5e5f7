"""vLLM's own classes for weights between GPUs, as far as a machine without one can go: nothing is started here."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from dapo_openrlhf.backend.transfer.receivers import WORKER_EXTENSION

pytestmark = pytest.mark.real


def test_the_extension_hides_nothing_of_vllms_worker() -> None:
    from vllm.v1.worker.gpu_worker import Worker

    module, _, name = WORKER_EXTENSION.rpartition(".")
    added = {name for name in vars(getattr(import_module(module), name)) if not name.startswith("__")}
    assert "begin_weights" in added
    assert not [name for name in added if hasattr(Worker, name)]


class AsyncCore:
    """An engine core with asynchronous scheduling: each step returns the tokens of the one before."""

    def __init__(self) -> None:
        self.engine_core = self
        self.scheduler = self
        self.batch_queue: deque[int] = deque()
        self.states: list[str] = []
        self._paused = False

    def set_pause_state(self, state: Any) -> None:
        self._paused = state.name != "UNPAUSED"
        self.states.append(state.name)

    def get_output(self) -> SimpleNamespace:
        if not self._paused:
            self.batch_queue.appendleft(1)
            if len(self.batch_queue) < 2:
                return SimpleNamespace(outputs=[])
        token = self.batch_queue.pop()
        output = SimpleNamespace(
            request_id="g/0", new_token_ids=[token], new_logprobs=None, new_sampling_mask=None, finish_reason=None,
            prefill_stats=None,
        )  # fmt: skip
        return SimpleNamespace(outputs=[output])


def test_a_step_in_flight_ends_with_its_own_version_before_weights_change() -> None:
    from dapo_openrlhf.backend.engine.loop import EngineLoop
    from dapo_openrlhf.backend.engine.unfinished import UnfinishedGroup, UnfinishedResponse

    loop, core = EngineLoop({}, name="engine 0", stop_ids=[]), AsyncCore()
    loop._core = core  # type: ignore[assignment]
    group = UnfinishedGroup(name="g", prompt_ids=[1], done=Future(), unfinished=1)
    response = loop._responses["g/0"] = UnfinishedResponse(group)
    for _ in range(3):
        loop._step()
    assert (len(response.ids), len(core.batch_queue)) == (2, 1)

    in_flight = loop.load_weights(1, lambda _: len(core.batch_queue))
    loop._obey(block=False)
    assert in_flight.result()[0] == 0, "weights were replaced under a running step"
    assert (response.versions, response.ends) == ([0], [3]), "its token belongs to the weights before"
    assert core.states == ["PAUSED_ALL", "UNPAUSED"]

    loop._step()
    loop._step()
    response.close_run(1)
    assert (response.versions, response.ends) == ([0, 1], [3, 4])


def test_a_group_that_waits_for_weights_can_be_cut() -> None:
    from dapo_openrlhf.backend.engine.loop import EngineLoop
    from dapo_openrlhf.backend.engine.rollout_worker import WeightUpdates
    from dapo_openrlhf.backend.engine.unfinished import UnfinishedGroup, UnfinishedResponse
    from dapo_openrlhf.pipeline.ports import Sampling

    loop = EngineLoop({}, name="engine 0", stop_ids=[], updates=WeightUpdates(in_flight=False))
    loop._core = AsyncCore()  # type: ignore[assignment]
    loop._responses["busy/0"] = UnfinishedResponse(
        UnfinishedGroup(name="g", prompt_ids=[1], done=Future(), unfinished=1)
    )
    loop.load_weights(1, lambda _: None)
    waiting = loop.generate("waiting", [1, 2], Sampling(n=2, max_new_tokens=4, temperature=1.0, top_p=1.0))
    loop._obey(block=False)
    assert not waiting.done()
    loop.cut("waiting")
    loop._obey(block=False)
    assert waiting.result() is None, "nothing was made"
    assert not loop._held_back, "it will not begin later"
