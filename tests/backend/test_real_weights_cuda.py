"""vLLM's own classes for weights between GPUs, as far as a machine without one can go: nothing is started here."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.backend.messages import PACKED, WeightLayout
from dapo_openrlhf.backend.transfer.checksum import Checksum
from dapo_openrlhf.backend.transfer.receivers import RECEIVERS

pytestmark = pytest.mark.real

WEIGHTS = {"up": torch.randn(8, 4).bfloat16(), "down": torch.randn(4, 8).bfloat16()}
LAYOUT = WeightLayout(
    names=tuple(WEIGHTS),
    dtypes=("bfloat16",) * 2,
    shapes=tuple(tuple(w.shape) for w in WEIGHTS.values()),
    sizes=(64,) * 2,
)


class Model:
    """Keeps what it is given to load."""

    def __init__(self) -> None:
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Any) -> None:
        self.loaded |= {name: tensor.clone() for name, tensor in weights}

    def modules(self) -> list[Any]:
        return []

    def named_modules(self) -> list[Any]:
        return []


class Broadcast:
    """The receiving end of a group whose sender sends ``WEIGHTS`` in order, with ``flaw`` on the way."""

    def __init__(self, flaw: Any = lambda tensor: tensor) -> None:
        self._tensors = iter(WEIGHTS.values())
        self._flaw = flaw

    def broadcast(self, tensor: Tensor, *, src: int, stream: Any) -> None:
        tensor.copy_(self._flaw(next(self._tensors).clone()))


def sent() -> int:
    checksum = Checksum()
    for name, tensor in WEIGHTS.items():
        checksum.add(name, tensor)
    return checksum.value()


SETTINGS = SimpleNamespace(
    parallel_config=None, model_config=SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=False))
)


def receive(group: Broadcast, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, int]:
    engine = receiver(group, monkeypatch)
    return engine.model, engine.received_checksum()


def receiver(group: Broadcast, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's engine for NCCL after a publication, which a model of ours has taken."""
    from dapo_openrlhf.backend.transfer.receivers import nccl

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(nccl.NCCLWeightTransferEngine, "start_weight_update", lambda self: None)
    model = Model()
    engine = nccl.CheckedNcclEngine(None, SETTINGS, torch.device("cpu"), model)
    engine.model_update_group = group
    engine.start_weight_update()
    engine.receive_weights(engine.parse_update_info(LAYOUT.update_info(packed=False)))
    assert engine.model is model
    return engine


def test_what_arrives_is_loaded_and_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, checksum = receive(Broadcast(), monkeypatch)
    assert checksum == sent()
    assert all(torch.equal(model.loaded[name], tensor) for name, tensor in WEIGHTS.items())


def test_what_changes_on_the_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _, checksum = receive(Broadcast(flaw=lambda tensor: tensor.flip(0)), monkeypatch)
    assert checksum != sent()


def test_what_the_model_did_not_take_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loads nothing into any parameter of vLLM's."""
    from dapo_openrlhf.backend.transfer.receivers import nccl
    from dapo_openrlhf.backend.transfer.receivers.delivery import IncompleteWeights

    finished: list[Any] = []
    monkeypatch.setattr(nccl.NCCLWeightTransferEngine, "finish_weight_update", lambda self: finished.append(self))
    engine = receiver(Broadcast(), monkeypatch)
    with pytest.raises(IncompleteWeights, match=r"model Model:\n  up, down as published went into none"):
        engine.finish_weight_update()
    assert finished == [engine], "the engine is left whole"


def test_messages_are_cut_to_what_the_installed_version_knows() -> None:
    from dapo_openrlhf.backend.transfer.receivers import ipc, nccl

    where = {"master_address": "h", "master_port": 1, "rank_offset": 1, "world_size": 2}
    for engine_class in (nccl.CheckedNcclEngine, ipc.CheckedIpcEngine):
        engine = engine_class(None, SETTINGS, torch.device("cpu"), Model())
        init = engine.parse_init_info({**where, **PACKED})
        update = engine.parse_update_info(LAYOUT.update_info(ipc_handles={"GPU": (1,)}, tensor_sizes=[64, 64]))
        assert update.names == ["up", "down"]
        # 0.26 has it in the update, 0.29 in the rendezvous; nowhere would mean one call per parameter.
        assert getattr(init, "packed", False) or getattr(update, "packed", False)


@pytest.mark.parametrize("transport", [name for name, told in RECEIVERS.items() if told.worker_extension])
def test_the_extension_hides_nothing_of_vllms_worker(transport: str) -> None:
    from vllm.v1.worker.worker_base import WorkerBase

    module, _, name = str(RECEIVERS[transport].worker_extension).rpartition(".")
    added = {name for name in dir(getattr(import_module(module), name)) if not name.startswith("__")}
    assert added == {"received_checksum"}
    assert not hasattr(WorkerBase, "received_checksum")


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
        output = SimpleNamespace(request_id="g/0", new_token_ids=[token], new_logprobs=None, finish_reason=None)
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
