"""Settings of generation: engines, responses, and how far both run ahead of training (pydantic)."""

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
    """Number of dedicated engines."""
    tensor_parallel_size: PositiveInt = 1
    """Number of GPUs per engine."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the memory of each of its GPUs that an engine may use (``device: cuda``)."""
    kv_cache_memory_bytes: PositiveInt | None = None
    """KV cache size in bytes; null takes what ``gpu_memory_utilization`` leaves, or 256 MiB on a CPU."""
    enable_prefix_caching: bool = True
    """Share the prompt's KV cache among a group's responses; groups that begin with other weights never share it."""
    enforce_eager: bool = False
    """Run the engines without CUDA graphs."""
    max_num_seqs: PositiveInt | None = None
    """Most responses that an engine generates at once; null makes room for the responses of all slots, at most 512 per
    engine."""
    max_num_batched_tokens: PositiveInt | None = None
    """Most tokens that an engine processes in one step; null takes 8192."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often within an hour each engine that dies, hangs, or fails one group after the other is replaced. After that the
    run goes on with the other engines, tries this one again when the first of its losses is an hour ago, and ends with a
    checkpoint when none is left."""
    health_timeout: Annotated[float, Field(ge=10, allow_inf_nan=False)] = 60.0
    """Seconds within which an engine's process must answer the question whether it works, asked every 5 s; one that does
    not is replaced. At least 10; the user is told after 10."""
    step_timeout: Annotated[float, Field(ge=60, allow_inf_nan=False)] = 600.0
    """Seconds that one step of an engine may take, compilation and prefill included, before the engine counts as hung
    although its process answers. At least 60; the user is told after 60."""
    sync_backend: Literal["auto", TransportName] = "auto"
    """How weights reach the engines: ``nccl`` between GPUs, ``ipc`` on a GPU that engine and trainer share, or through
    Ray's object store and host memory; ``gloo`` takes the place of ``nccl`` on a CPU. ``auto`` takes the first of these
    that the placement allows."""


class RolloutSection(Section):
    batch_size: PositiveInt = PAPER["rollout.batch_size"]
    """P: number of prompts (groups) in one rollout step."""
    n_samples_per_prompt: PositiveInt = PAPER["rollout.n_samples_per_prompt"]
    """G: number of responses to each prompt."""
    max_new_tokens: PositiveInt = PAPER["rollout.max_new_tokens"]
    """L_max: longest response, in tokens; a longer one is truncated. With an environment all actions of a rollout
    together; what the environment writes counts in ``data.max_len`` only."""
    max_turns: PositiveInt = 16
    """Most actions in a rollout with an environment; one that is not done by then is truncated."""
    max_action_tokens: PositiveInt | None = None
    """Longest action in a rollout with an environment, in tokens; a longer one is truncated and answered nevertheless.
    null lets an action take all that ``rollout.max_new_tokens`` leaves."""
    temperature: Annotated[float, Field(ge=COLDEST, le=HOTTEST)] = PAPER["rollout.temperature"]
    """Sampling temperature; the trainer's log-probs use the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = PAPER["rollout.top_p"]
    """Nucleus sampling: the likeliest tokens with this share of the probability. Where ``rollout.top_p``, ``top_k`` or
    ``min_p`` leave tokens out, engines return what they kept, and the trainer's log-probs are of the same tokens."""
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Number of likeliest tokens that are sampled from; 0, or -1, takes all."""
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Least probability of a token that is sampled, as a share of the likeliest one's."""

    @property
    def truncated(self) -> bool:
        """Whether tokens may be sampled from less than the whole distribution."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class AsyncSection(Section):
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """K: largest policy age of a group that is trained; 0 is synchronous training, 1 is one version off-policy."""
    at_deadline: AtDeadline = "wait"
    """What happens to groups in flight when a batch waits for nothing else: ``wait`` waits for them; ``cut`` truncates
    their responses, which are then never trained. It keeps steps short and favours short responses: see
    the metric ``cut_share``."""
    over_sampling: Annotated[float, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of groups in flight for each one that is to be kept; ``auto`` follows the filter's pass rate, 1 switches
    over-sampling off. Groups that turn out not to be needed are counted as surplus."""
    kv_cache: KvCache = "keep"
    """What happens to the KV cache of the tokens so far when new weights arrive during generation: ``keep`` keeps it,
    ``recompute`` computes it again with the new weights."""
    old_logprobs: OldLogprobs = "recompute"
    """Whose log-probs are the denominator of the ratio: the trainer's own (``recompute``); the engine's (``rollout``); or,
    for later updates of a step, between the engine's and those of the weights being trained, by the version that sampled
    each token (``interpolate``, A-3PO, arXiv 2512.06547). The latter two save a forward pass where a step has several
    updates."""
    scale_lr: bool = False
    """Divide the learning rates of actor and critic by 1 + ``max_staleness``: where staleness binds, the largest stable rate
    falls with it (arXiv 2607.01083)."""
    generate_timeout: PositiveFloat = 3600.0
    """Seconds one group may take in an engine, its environments included; a group that takes longer fails, and its prompt
    is tried again. An engine that finishes no group at all in that time is considered hung, and is replaced; with an
    environment only ``vllm.step_timeout`` and ``vllm.health_timeout`` tell that."""
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
        """Whether groups in flight are cut when a batch waits for nothing else."""
        match self.at_deadline:
            case "wait":
                return False
            case "cut":
                return True
            case _:
                assert_never(self.at_deadline)

    @property
    def recompute_kv_cache(self) -> bool:
        """Whether the KV cache of the tokens so far is computed again when new weights arrive."""
        match self.kv_cache:
            case "keep":
                return False
            case "recompute":
                return True
            case _:
                assert_never(self.kv_cache)

    @property
    def over_sampling_factor(self) -> float | None:
        """Number of groups in flight for each one that is to be kept; None follows the filter's pass rate."""
        return None if self.over_sampling == "auto" else self.over_sampling
