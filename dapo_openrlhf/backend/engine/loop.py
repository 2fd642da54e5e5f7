"""vLLM's engine core, driven step by step on a thread of its own.

The core runs in this process, without vLLM's front end: no request objects per token, no detokeniser, no second
process. The token ids and log-probabilities that it returns per step are appended to the group that they belong to.
Nothing runs between two steps, so weights are replaced there: requests are kept, no token is half computed, and the
version of every token is known exactly.

This table lists what vLLM's front end does for a request (``v1/engine/input_processor.py``, ``sampling_params.py`` of
0.29) and where it is done here:

| front end                            | here                                                                       |
|--------------------------------------|----------------------------------------------------------------------------|
| renders and tokenises                | rows of data are tokenised before a prompt gets here                       |
| prompt empty, too long, unknown id   | ``prompt_checks.py``, stricter: room for all of ``max_new_tokens``, and no |
|                                      | id without a row in the embedding; fails the prompt, not the engine        |
| tokens that end a response           | ``stop_tokens.py``: also config.json and the chat template                 |
| default temperature, top_p, top_k,   | not used: trainer and sampler must agree, and an evaluation has settings   |
| repetition_penalty of the model      | of its own; only :class:`~dapo_openrlhf.pipeline.ports.Sampling` counts    |
| ranges of sampling parameters        | ``config/``; ``SamplingParams`` checks its own once more                   |
| n responses of a request             | :meth:`EngineLoop._add`: one request each; they share the prompt's cache   |
| seed                                 | ``train.seed`` plus the engine's index; requests with a seed have their own|
| cache_salt                           | how often weights were replaced; a version may come back after a rewind    |
| log-probs                            | those of the sampled token only, as arrays                                 |
| tokens that the sampler kept         | ``core.py``, if they are asked for                                         |
| detokenisation, stop strings         | ``actor.py`` decodes whole responses; there are no stop strings            |
| bad words, logit bias, allowed ids,  | not offered                                                                |
| structured output, LoRA, multi-modal |                                                                            |
| request ids made unique              | :meth:`EngineLoop._add` numbers them                                       |

This file uses vLLM's internals for generation, and ``backend/transfer/`` those for the weight sync.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import InprocClient

from dapo_openrlhf.backend.engine.core import RETURN_KEPT, start_core
from dapo_openrlhf.backend.engine.prompt_checks import check_prompt
from dapo_openrlhf.backend.engine.rollout_worker import IN_FLIGHT, WeightUpdates
from dapo_openrlhf.backend.engine.unfinished import Made, UnfinishedGroup, UnfinishedResponse
from dapo_openrlhf.backend.messages import BadPrompt
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.types import Span

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SHARED_PARAMETERS = 64
"""Most parameters that are kept for further responses; with environments every turn may have others."""

WARM_UP_TOKENS = 8
"""Tokens of each response that a GPU is warmed up with."""


class EngineLoop:
    """Thread that owns the engine core. Public methods may be called from any thread."""

    def __init__(
        self,
        engine_args: Mapping[str, Any],
        *,
        name: str,
        stop_ids: Sequence[int],
        version: int = 0,
        updates: WeightUpdates = IN_FLIGHT,
    ) -> None:
        """``name`` is the worker's name in spans, ``version`` the version of the weights in ``engine_args["model"]``.

        A response ends at any of ``stop_ids``, which is kept as its last token.
        """
        self._engine_args = engine_args
        self._name = name
        self._stop_ids = list(stop_ids)
        self._keeps = bool(engine_args.get(RETURN_KEPT))
        self._shared_parameters = functools.lru_cache(SHARED_PARAMETERS)(self._parameters_of)
        self._updates = updates
        self._held_back: dict[str, tuple[Future[Made], Callable[[], None]]] = {}  # groups that wait for new weights
        self._loads: list[Callable[[], None]] = []
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._responses: dict[str, UnfinishedResponse] = {}  # responses in the core, by request id
        self._serial = itertools.count()
        self._version = version
        self._whole = True  # false while the model has parts of two versions: a loading was given up
        self._loaded = 0  # how often weights were replaced, or failed to be
        self._spans: list[Span] = []
        self._busy_since: float | None = None
        self.steps_begun = self.steps_ended = 0
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._started: Future[None] = Future()

    def start(self) -> Future[None]:
        """Load the model; the future is done when the engine can generate."""
        self._thread.start()
        return self._started

    def generate(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> Future[Made]:
        """Sample a group, each step with the weights current at that step. The future raises :class:`BadPrompt`."""
        done: Future[Made] = Future()
        add = functools.partial(self._add, group_id, prompt_ids, sampling, done)
        self._commands.put(lambda: self._hold_back(group_id, done, add) if self._loads else add())
        return done

    def cut(self, group_id: str) -> None:
        """Stop generating a group. Its future gets the tokens so far, unfinished responses marked truncated and cut."""
        self._commands.put(lambda: self._cut(group_id))

    def between_steps(self, command: Callable[[InprocClient], Result]) -> Future[Result]:
        """Run ``command`` on the engine's thread while no step is running."""
        future: Future[Result] = Future()
        self._commands.put(functools.partial(self._answer, future, command))
        return future

    def load_weights(self, version: int, load: Callable[[InprocClient], Result]) -> Future[tuple[Result, list[Span]]]:
        """Replace the weights; tokens of later steps carry ``version``. If that fails, nothing is generated until it succeeds.

        The future also returns this engine's spans since the previous loading; the last span is this loading.
        """
        future: Future[tuple[Result, list[Span]]] = Future()

        def command(core: InprocClient) -> tuple[Result, list[Span]]:
            self._close_span()
            started = time.time()
            self._whole = False
            self._loaded += 1
            result = load(core)
            self._whole = True
            if self._updates.recompute_kv_cache:
                core.reset_prefix_cache(reset_running_requests=True)
            for response in self._responses.values():
                response.close_run(self._version)
            self._version = version
            self._spans.append(Span(worker=self._name, kind="load_weights", start=started, end=time.time()))
            spans, self._spans = self._spans, []
            return result, spans

        answer = functools.partial(self._answer, future, command)
        in_flight = self._updates.in_flight
        self._commands.put(lambda: answer() if in_flight or not self._whole else self._loads.append(answer))
        return future

    # ------------------------------------------------------------------ on the engine's thread from here on

    def _run(self) -> None:
        try:
            self._core, model = start_core(self._engine_args)
            self.vocabulary = model.get_vocab_size()
            self._longest = model.max_model_len
            if not current_platform.is_cpu():
                self._warm_up()
            self._started.set_result(None)
        except BaseException as error:
            self._started.set_exception(error)
            return
        try:
            while True:
                self._obey(block=not (self._responses and self._whole))
                if self._responses and self._whole:
                    if self._busy_since is None:
                        self._busy_since = time.time()
                    self.steps_begun += 1
                    self._step()
                    self.steps_ended += 1
                if not self._responses:
                    self._close_span()
                    self._load_when_idle()
        except BaseException:
            # A core that failed in a step cannot recover, and nobody would complete the futures that callers wait on.
            # Ray notifies all callers at once when the process is gone.
            logger.exception("the engine core failed; ending its process")
            logging.shutdown()
            os._exit(1)

    def _warm_up(self) -> None:
        """Generate once as many responses at a time as ever will be: a GPU chooses, compiles and allocates at first use."""
        done: Future[Made] = Future()
        sampling = Sampling(
            n=self._engine_args["max_num_seqs"],
            max_new_tokens=min(WARM_UP_TOKENS, self._longest - 1),
            temperature=1.0,
            top_p=1.0,
        )
        self._add("warm-up", [0], sampling, done)
        while self._responses:
            self._step()
        self._settle()
        done.result(timeout=0)  # raises what the core refused

    def _answer(self, future: Future[Result], command: Callable[[InprocClient], Result]) -> None:
        self._settle()  # outside of what follows: a core that fails in a step ends the process
        try:
            future.set_result(command(self._core))
        except Exception as error:  # passed on to the caller, which waits on the future
            future.set_exception(error)

    def _load_when_idle(self) -> None:
        loads, self._loads = self._loads, []
        for load in loads:
            load()
        if not self._whole:
            return
        held_back, self._held_back = self._held_back, {}
        for _, add in held_back.values():
            add()

    def _hold_back(self, group_id: str, done: Future[Made], add: Callable[[], None]) -> None:
        self._held_back[group_id] = done, add

    def _close_span(self) -> None:
        if self._busy_since is not None:
            self._spans.append(Span(worker=self._name, kind="generate", start=self._busy_since, end=time.time()))
            self._busy_since = None

    def _obey(self, *, block: bool) -> None:
        try:
            while True:
                self._commands.get(block=block)()
                block = False
        except queue.Empty:
            return

    def _add(self, group_id: str, prompt_ids: Sequence[int], sampling: Sampling, done: Future[Any]) -> None:
        group = UnfinishedGroup(
            name=group_id,
            prompt_ids=prompt_ids,
            done=done,
            unfinished=sampling.n,
            kept_of=self.vocabulary if sampling.kept else None,
        )
        # A name may come again while a step with its last requests is in flight, so requests are numbered.
        begun = {f"{group_id}/{next(self._serial)}": UnfinishedResponse(group) for _ in range(sampling.n)}
        try:
            check_prompt(
                prompt_ids, new_tokens=sampling.max_new_tokens, vocabulary=self.vocabulary, longest=self._longest
            )
            for index, request_id in enumerate(begun):
                self._core.add_request(self._request(request_id, prompt_ids, self._parameters(sampling, index)))
        except BadPrompt as error:
            done.set_exception(error)
        except Exception as error:  # a refused request fails its own group; the engine continues
            logger.exception("the engine core refused %s", group_id)
            self._core.abort_requests([*begun])
            done.set_exception(error)
        else:
            self._responses |= begun
            group.responses += begun.values()

    def _parameters(self, sampling: Sampling, index: int) -> SamplingParams:
        """vLLM's parameters of one response; all responses without a seed share them."""
        if sampling.seed is not None:
            return self._parameters_of(sampling.of_response(index))
        return self._shared_parameters(sampling)

    def _parameters_of(self, sampling: Sampling) -> SamplingParams:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            stop_token_ids=self._stop_ids,
            logprobs=0,  # return that of the sampled token only
            detokenize=False,
        )

    def _request(self, request_id: str, prompt_ids: Sequence[int], parameters: SamplingParams) -> EngineCoreRequest:
        return EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt_ids),
            mm_features=None,
            sampling_params=parameters,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=str(self._loaded),  # a prefix computed with other weights must not be reused
            data_parallel_rank=None,
        )

    def _step(self) -> None:
        responses = self._responses
        for output in self._core.get_output().outputs:
            response = responses[output.request_id]
            logprobs = output.new_logprobs
            response.add(output.new_token_ids, None if logprobs is None else logprobs.logprobs)
            if self._keeps and (masks := output.new_sampling_mask) is not None:
                response.keep(masks.token_ids, masks.offsets)
            if output.prefill_stats is not None:  # with a response's first token
                response.cached = output.prefill_stats.num_cached_tokens
            if output.finish_reason is not None:
                response.truncated = output.finish_reason == FinishReason.LENGTH
                self._finish(output.request_id)

    def _settle(self) -> None:
        """Wait for a step that is under way to end, and start no other.

        On CUDA vLLM schedules a step while the previous one still runs, which is worth keeping. So one step may be in
        flight between two calls of ``get_output``, and its tokens are sampled with the previous weights.
        """
        inner = self._core.engine_core
        if not inner.batch_queue:  # None without asynchronous scheduling
            return
        inner.scheduler.set_pause_state(PauseState.PAUSED_ALL)  # as ``pause_generation(mode="keep")`` does
        try:
            while inner.batch_queue:
                self._step()
        finally:
            inner.scheduler.set_pause_state(PauseState.UNPAUSED)

    def _finish(self, request_id: str) -> None:
        response = self._responses.pop(request_id)
        response.close_run(self._version)
        response.group.end_one()

    def _cut(self, group_id: str) -> None:
        if group_id in self._held_back:
            self._held_back.pop(group_id)[0].set_result(None)
            return
        requests = [request for request, response in self._responses.items() if response.group.name == group_id]
        self._core.abort_requests(requests)
        for request_id in requests:
            response = self._responses[request_id]
            response.truncated = response.cut = True
            self._finish(request_id)
