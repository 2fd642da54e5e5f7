"""Settings of what is generated: engines, responses, and how far both run ahead of training (pydantic)."""

from __future__ import annotations

from typing import Annotated, Literal, assert_never

from pydantic import Field

from dapo_openrlhf.algorithm.choices import OldLogprobs
from dapo_openrlhf.config.choices import AtDeadline, KvCache
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import COLDEST, HOTTEST, PositiveFloat, PositiveInt, Section
from dapo_openrlhf.config.transports import TransportName


class VllmSection(Section):
    num_engines: PositiveInt = 1
    """Dedicated engines."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs per engine."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each engine GPU's memory (``device: cuda``)."""
    kv_cache_memory_bytes: PositiveInt | None = None
    """KV cache size in bytes; null takes what ``gpu_memory_utilization`` leaves, or 256 MiB on a CPU."""
    enable_prefix_caching: bool = True
    """Share the prompt's KV cache among a group's responses; never with groups that begin with other weights."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    max_num_seqs: PositiveInt | None = None
    """Responses an engine generates at once; null sizes it for all slots' responses, at most 512 per engine."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens an engine processes in one step; null takes 8192."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often each engine that dies, hangs, or only fails is replaced before the run ends."""
    sync_backend: Literal["auto", TransportName] = "auto"
    """How weights reach the engines: ``nccl`` between GPUs, ``ipc`` on a GPU that engine and trainer share, or through
    Ray's object store and host memory. ``auto`` takes the first of these that the placement allows."""


class RolloutSection(Section):
    batch_size: PositiveInt = PAPER["rollout.batch_size"]
    """P: prompts (groups) of one rollout step."""
    n_samples_per_prompt: PositiveInt = PAPER["rollout.n_samples_per_prompt"]
    """G: responses of one prompt."""
    max_new_tokens: PositiveInt = PAPER["rollout.max_new_tokens"]
    """L_max: longest response, in tokens; a longer one is truncated."""
    temperature: Annotated[float, Field(ge=COLDEST, le=HOTTEST)] = PAPER["rollout.temperature"]
    """Sampling temperature; the trainer's log-probs use the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = PAPER["rollout.top_p"]
    """Nucleus sampling, as in OpenRLHF; below 1 it biases training, and is refused."""


class AsyncSection(Section):
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """K: largest policy age that is trained; 0 is synchronous, 1 off by one."""
    at_deadline: AtDeadline = "wait"
    """What happens to groups in flight that alone hold up a batch: ``wait`` for them, or ``cut`` them, which truncates
    their responses (never trained), keeps the time of a step short and favours short responses: see ``cut_share``."""
    over_sampling: Annotated[float, Field(ge=1)] | Literal["auto"] = "auto"
    """Groups in flight for each one that is to be kept; ``auto`` follows the filter's pass rate, 1 is none. Groups made
    in vain are counted as surplus."""
    kv_cache: KvCache = "keep"
    """Of the tokens so far, when new weights come in flight: kept, or made anew by the new weights."""
    old_logprobs: OldLogprobs = "recompute"
    """Denominator of the ratio: the trainer's own log-probs, or the engine's (saves one forward pass)."""
    generate_timeout: PositiveFloat = 3600.0
    """Seconds one group may take in an engine. One on which no group at all is done in that time hangs, and is replaced."""
    reward_timeout: PositiveFloat = 60.0
    """Seconds the scoring of one group may take before its worker is replaced."""
    train_timeout: PositiveFloat = 7200.0
    """Seconds one trainer step may take."""
    publish_timeout: PositiveFloat = 600.0
    """Seconds each phase of a weight publication may take. With ``object_store`` an engine that is late is replaced."""
    start_timeout: PositiveFloat = 1800.0
    """Seconds all actors may take to start."""

    @property
    def cut_late(self) -> bool:
        """Whether groups that alone hold up a batch are cut."""
        match self.at_deadline:
            case "wait":
                return False
            case "cut":
                return True
            case _:
                assert_never(self.at_deadline)

    @property
    def recompute_kv_cache(self) -> bool:
        """Whether new weights make the KV cache of the tokens so far anew."""
        match self.kv_cache:
            case "keep":
                return False
            case "recompute":
                return True
            case _:
                assert_never(self.kv_cache)

    @property
    def over_sampling_factor(self) -> float | None:
        """Groups in flight for each one that is to be kept; None follows the filter's pass rate."""
        return None if self.over_sampling == "auto" else self.over_sampling
