"""Starts vLLM's engine core, and has it return the tokens that its sampler kept, where that is asked for.

vLLM from 0.28 on returns them on GPUs (``return_sampling_mask``), with its second model runner. The first one, which
runs on CPUs, does not: there its sampler is asked what it has drawn from. A token that ``min_p``, ``top_k`` or
``top_p`` has cut away has the log-probability minus infinity in the distribution that the sampler returns, and no other
has, so both ways give the set that the sampler used. The scheduler divides the sets among requests in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.executor.abstract import Executor

RETURN_KEPT = "return_sampling_mask"
"""vLLM's argument for the tokens that the sampler kept."""


def start_core(engine_args: Mapping[str, Any]) -> tuple[InprocClient, Any]:
    """An engine core in this process, and its ``ModelConfig``."""
    arguments = dict(engine_args)
    record = bool(arguments.get(RETURN_KEPT)) and current_platform.is_cpu()
    if record:
        del arguments[RETURN_KEPT]
    config = EngineArgs(**arguments).create_engine_config()
    if record:
        config.model_config.return_sampling_mask = True  # for the scheduler; the first model runner does not read it
    core = InprocClient(config, Executor.get_class(config), False)
    if record:
        core.collective_rpc(record_kept)
    return core, config.model_config


def record_kept(worker: Any) -> None:
    """Have a worker with vLLM's first model runner return which tokens its sampler kept, from its next step on."""
    runner, kept = worker.model_runner, _Kept()
    sampler = runner.sampler.topk_topp_sampler
    draw, sample = sampler.forward, runner.sample_tokens

    def drawing(*arguments: Any, **options: Any) -> Any:
        sampled, logprobs = draw(*arguments, **options)
        kept.note(logprobs)
        return sampled, logprobs

    def sampling(*arguments: Any, **options: Any) -> Any:
        kept.masks = None
        output = sample(*arguments, **options)
        output.sampling_masks = kept.masks
        return output

    sampler.forward = drawing
    runner.sample_tokens = sampling


class _Kept:
    """The sets of one step, in the order of the requests."""

    def __init__(self) -> None:
        self.masks: Any = None

    def note(self, logprobs: Any) -> None:
        from vllm.v1.outputs import SamplingMaskLists  # from 0.28 on

        kept = np.isfinite(logprobs.numpy())
        counts = kept.sum(1)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        self.masks = SamplingMaskLists(np.nonzero(kept)[1].astype(np.int32), offsets)
