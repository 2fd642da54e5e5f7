"""What the engine loop asks of vLLM's core for a group, and whose failure it is when there is nothing to ask."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dapo_openrlhf.backend.messages import BadPrompt
from dapo_openrlhf.pipeline.ports import Sampling

pytestmark = pytest.mark.real  # imports vLLM

SAMPLING = Sampling(n=3, max_new_tokens=4, temperature=0.7, top_p=0.9, top_k=20, min_p=0.05)


class Core:
    """Takes requests until it has ``room`` of them, then raises."""

    def __init__(self, *, room: int = 100) -> None:
        self.requests: list[Any] = []
        self.aborted: list[str] = []
        self._room = room

    def add_request(self, request: Any) -> None:
        if len(self.requests) == self._room:
            raise ValueError("no such request")
        self.requests.append(request)

    def abort_requests(self, names: list[str]) -> None:
        self.aborted += names


def asked(core: Core, ids: list[int]) -> tuple[SimpleNamespace, Future[Any]]:
    from dapo_openrlhf.backend.engine.loop import EngineLoop

    loop = EngineLoop({}, name="engine 0", stop_ids=[1, 7], version=5)
    loop._core, loop.vocabulary, loop._longest = core, 19, 10  # type: ignore[assignment]
    done = loop.generate("g", ids, SAMPLING)
    loop._obey(block=False)
    return SimpleNamespace(in_core=sorted(loop._responses)), done


def test_each_response_is_a_request_that_ends_at_the_stop_tokens_and_is_sampled_as_the_run_says() -> None:
    core = Core()
    loop, done = asked(core, [3, 4])
    assert not done.done()
    assert loop.in_core == ["g/0", "g/1", "g/2"] == [request.request_id for request in core.requests]
    for request in core.requests:
        params = request.sampling_params
        assert (request.prompt_token_ids, request.cache_salt) == ([3, 4], "0")
        assert sorted(params.stop_token_ids) == [1, 7] == sorted(params.all_stop_token_ids)
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.7, 0.9, 20, 0.05)
        assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
        assert (params.max_tokens, params.min_tokens, params.logprobs, params.seed) == (4, 0, 0, None)
        assert (params.n, params.eos_token_id, params.detokenize) == (1, None, False)


@pytest.mark.parametrize(
    ("ids", "reason"), [([], "prompt_empty"), ([19], "prompt_token_unknown"), ([2] * 7, "prompt_too_long")]
)
def test_a_prompt_at_fault_never_reaches_the_core(ids: list[int], reason: str) -> None:
    core = Core()
    loop, done = asked(core, ids)
    error = done.exception(timeout=0)
    assert isinstance(error, BadPrompt) and error.reason == reason
    assert (core.requests, loop.in_core) == ([], [])


def test_what_the_core_refuses_fails_its_group_only_and_leaves_nothing_in_the_core() -> None:
    core = Core(room=2)
    loop, done = asked(core, [3, 4])
    assert isinstance(done.exception(timeout=0), ValueError)
    assert loop.in_core == []
    assert core.aborted == ["g/0", "g/1", "g/2"]


def test_sampling_parameters_are_shared_and_do_not_pile_up() -> None:
    """Each turn of a rollout with an environment has a limit of its own, of which a run makes many."""
    from dapo_openrlhf.backend.engine.loop import SHARED_PARAMETERS, EngineLoop

    loop = EngineLoop({}, name="engine 0", stop_ids=[])
    assert loop._parameters(SAMPLING, 0) is loop._parameters(SAMPLING, 1)
    made = [loop._parameters(replace(SAMPLING, max_new_tokens=most), 0) for most in range(1, 1000)]
    assert [parameters.max_tokens for parameters in made] == [*range(1, 1000)]
    assert loop._shared_parameters.cache_info().currsize == SHARED_PARAMETERS


def test_a_core_that_fails_while_a_step_in_flight_ends_is_no_failed_loading() -> None:
    """The process ends, as after any other failed step; an answer would let it go on with a broken core."""
    from dapo_openrlhf.backend.engine.loop import EngineLoop

    class BrokenCore:
        def __init__(self) -> None:
            self.engine_core = self.scheduler = self
            self.batch_queue = [1]

        def set_pause_state(self, state: Any) -> None: ...

        def get_output(self) -> None:
            raise RuntimeError("no more memory")

    loop = EngineLoop({}, name="engine 0", stop_ids=[])
    loop._core = BrokenCore()  # type: ignore[assignment]
    loading = loop.load_weights(1, lambda core: None)
    with pytest.raises(RuntimeError, match="no more memory"):
        loop._obey(block=False)
    assert not loading.done()
