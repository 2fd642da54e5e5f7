"""Every setting, its unit, its range and what it must agree with (pydantic and the standard library).

A setting that OpenRLHF has keeps OpenRLHF's dotted name. Files are YAML; ``--rollout.batch_size 64`` on the command
line overrides ``rollout: {batch_size: ...}`` in the file, and both override what ``preset`` sets. Everything is checked here, before anything starts: unknown
keys, wrong types and impossible combinations are refused in one :class:`ConfigError` that names the key, the value
and what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic.fields import FieldInfo

from dapo_openrlhf.algorithm.choices import ESTIMATORS, EstimatorName, KlEstimator, LossAggMode, PolicyLossType
from dapo_openrlhf.config.input_template import input_template
from dapo_openrlhf.config.presets import PRESETS, PresetName

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]

COLDEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM samples at (its ``sampling_params.py``): it takes colder ones for 0.01, and refuses hotter ones."""


class ConfigError(ValueError):
    """The configuration cannot be run; the message names key, value and remedy."""


class SettingsUnreadable(ConfigError):
    """A file of settings is missing or broken as a file, whatever it was meant to say."""


class Section(BaseModel):
    """A frozen group of settings; the docstring below a field becomes its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _listed(value: object) -> object:
    """One value where a list may stand; null stays null."""
    return (value,) if isinstance(value, str | int | float) else value


def _bounds(value: object) -> object:
    """HIGH alone is an upper bound only."""
    match value:
        case int() | float():
            return (0.0, value)
        case [high]:
            return (0.0, high)
    return value


def _rewards(value: object) -> object:
    """As a list, in which null stands for the rule."""
    return _listed("rule" if value is None else value)


def _mapping(value: object) -> object:
    """A mapping where one is written as text, as on the command line."""
    return yaml.load(value, Loader=_Loader) if isinstance(value, str) else value


AnySection = TypeVar("AnySection", bound=Section)


class RunSection(Section):
    name: str = "dapo"
    """The run's folder is ``<run.dir>/<run.name>``; a number is appended when it exists."""
    dir: str = "runs"
    """Parent folder of all runs, relative to the current folder."""


class AdamSection(Section):
    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; biases and norms are exempt."""


class ActorSection(Section):
    model_name_or_path: str
    """Hugging Face name or folder of the model to train."""
    num_nodes: PositiveInt = 1
    """Machines that train; each holds ``actor.num_gpus_per_node`` ranks."""
    num_gpus_per_node: PositiveInt = 1
    """Trainer ranks per node: one GPU each, or one CPU process each with ``device: cpu``."""
    eps_clip_low_high: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.2, 0.28)
    """Clip range (eps_low, eps_high) of the ratio, eq. 8; Clip-Higher is eps_high > eps_low (eq. 10)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Dual-clip constant c > 1 for negative advantages, or null for none (the paper has none)."""
    policy_loss_type: PolicyLossType = "ppo"
    """Ratio of each token (``ppo``), or of the whole response (``gspo``, arXiv 2507.18071, eq. 7, whose clip range is
    some 3e-4)."""
    loss_agg_mode: LossAggMode = "token-mean"
    """``token-mean``: all tokens alike (DAPO eq. 12); ``seq-mean-token-mean``: all responses (GRPO, DAPO eq. 5);
    ``prompt-mean-token-mean``: all prompts (DAPO eq. 8 to the letter); ``seq-mean-token-sum-norm``: a response's sum
    over the constant rollout.max_new_tokens (Dr. GRPO)."""
    adam: AdamSection = AdamSection()
    lr_scheduler: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """Schedule over the run's gradient steps; its lengths are given in rollout steps, however many prompts they took."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Linear warm-up, in rollout steps."""
    max_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradient norm is clipped to this; 0 switches clipping off."""
    gradient_checkpointing_enable: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations: less memory, a third slower."""


class CriticAdamSection(AdamSection):
    lr: PositiveFloat = 9e-6
    """Peak learning rate of the critic; its schedule is the actor's."""


class CriticSection(Section):
    model_name_or_path: str | None = None
    """Model the critic starts from, with a new value head where it has none; null takes the actor's."""
    adam: CriticAdamSection = CriticAdamSection()
    value_clip: PositiveFloat | None = 0.5
    """How far a value may move within a step before its loss is clipped (arXiv 2005.12729), or null."""
    save_value_network: bool = False
    """Save the critic's model too, in each saved model's folder ``critic``, for ``critic.model_name_or_path``."""


class DsSection(Section):
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    param_dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Model data type in trainer and engines alike; log-probs and losses are float32 always."""
    grad_accum_dtype: Literal["fp32", "bf16", "fp16"] | None = "fp32"
    """In which gradients add up over an update's micro-batches; null takes ``param_dtype``, as OpenRLHF does by default.
    bf16 loses what the later ones add; fp32 takes 2 bytes more for each parameter, spread over the trainer ranks."""
    attn_implementation: Literal["flash_attention_2", "sdpa"] = "flash_attention_2"
    """Attention of the trainer, over packed sequences either way."""
    adam_offload: bool = False
    """Keep the optimizer's states in host memory."""


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
    sync_backend: Literal["auto", "nccl", "ipc", "object_store"] = "auto"
    """How weights reach the engines: ``nccl`` between GPUs, ``ipc`` on a GPU that engine and trainer share, or through
    Ray's object store and host memory. ``auto`` takes the first of these that the placement allows."""


class RolloutSection(Section):
    batch_size: PositiveInt = 512
    """P: prompts (groups) of one rollout step."""
    n_samples_per_prompt: PositiveInt = 16
    """G: responses of one prompt."""
    max_new_tokens: PositiveInt = 20480
    """L_max: longest response, in tokens; a longer one is truncated."""
    temperature: Annotated[float, Field(ge=COLDEST, le=HOTTEST)] = 1.0
    """Sampling temperature; the trainer's log-probs use the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling, as in OpenRLHF; below 1 it biases training, and is refused."""


class TrainSection(Section):
    batch_size: PositiveInt = 512
    """Responses of one gradient update; U = rollout.batch_size * n_samples_per_prompt / batch_size updates a step."""
    max_tokens_per_gpu: PositiveInt = 32768
    """Budget of one micro-batch, prompt and response tokens; a longer single sequence goes alone."""
    max_epochs: PositiveInt = 1
    """Passes over each rollout step's batch."""
    max_steps: PositiveInt = 400
    """Rollout steps of the run."""
    partial_rollout_enable: bool = True
    """Engines take new weights in flight, with their requests kept; false: each finishes what it has begun before."""
    max_bad_updates: PositiveInt = 3
    """An update with a number that is not finite (loss, log-prob, advantage, gradient norm) is stopped before the optimizer
    sees it; so many in a row end the run."""
    max_rollout_kl: Annotated[float, Field(gt=0)] | None = None
    """The run stops when engines and trainer differ by more than this on tokens of the very same weights (metric
    ``rollout_kl/age_0``, in nats a token): they are not the same policy then. null takes 1e-3 with ``ds.param_dtype`` fp32
    and 0.1 otherwise; .inf never stops."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of the order of prompts, the cut into updates, and sampling."""
    check_agreement: bool = True
    """Before the first step, compare the trainer's log-probs with the model's own forward pass and with each engine's, and
    refuse to train a policy that is not the one that samples. False trains it nevertheless."""
    colocate_all: bool = False
    """Engine i and trainer rank i share GPU i: for machines with a single GPU. Leave the trainer its part of the memory
    with ``vllm.gpu_memory_utilization``."""


class AsyncSection(Section):
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """K: largest policy age that is trained; 0 is synchronous, 1 off by one."""
    at_deadline: Literal["wait", "cut"] = "wait"
    """What happens to groups in flight that alone hold up a batch: ``wait`` for them, or ``cut`` them, which truncates
    their responses (never trained), keeps the time of a step short and favours short responses: see ``cut_share``."""
    over_sampling: Annotated[float, Field(ge=1)] | Literal["auto"] = "auto"
    """Groups in flight for each one that is to be kept; ``auto`` follows the filter's pass rate, 1 is none. Groups made
    in vain are counted as surplus."""
    kv_cache: Literal["keep", "recompute"] = "keep"
    """Of the tokens so far, when new weights come in flight: kept, or made anew by the new weights."""
    old_logprobs: Literal["recompute", "rollout"] = "recompute"
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


class AdvantageSection(Section):
    estimator: EstimatorName = "group_norm"
    """``group_norm``: reward minus the group's mean, over its standard deviation (DAPO eq. 9); ``dr_grpo``: minus the
    mean only (arXiv 2503.20783); ``rloo``: minus the mean of the others (arXiv 2402.14740); ``gae``: with a critic
    (arXiv 1506.02438, eq. 16); ``reinforce_baseline``, ``reinforce``: minus the group's mean, or the reward itself,
    whitened over the batch (arXiv 2501.03262)."""
    gamma: Fraction = 1.0
    """Discount of ``gae`` and ``reinforce``."""
    lambd: Fraction = 1.0
    """Lambda of ``gae``: 1 trusts rewards only, 0 values only."""
    no_std_norm: bool = False
    """Centre advantages over the batch without scaling them, with the estimators that whiten."""
    is_correction_level: Literal["off", "token", "seq"] = "token"
    """Each token's importance weight old/rollout corrects for what engine and trainer, or two versions, disagree on:
    ``off`` not at all, ``token`` bounded by itself, ``seq`` only in responses whose geometric mean is within the bounds.
    With ``gspo`` the rollout is the ratio's denominator instead."""
    is_correction_mode: Literal["clip", "mask"] = "clip"
    """Outside the threshold: ``clip`` truncates a token's weight, ``mask`` sets it, or the response's, to zero."""
    is_correction_threshold: Annotated[tuple[float, float], BeforeValidator(_bounds), Field(strict=False)] = (0.0, 2.0)
    """LOW HIGH bounds of the weight, or HIGH alone. ``gspo`` corrects without weights, and has no use for them."""


class KlSection(Section):
    init_coef: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the KL to the reference policy, which is the model at the start; 0: none, and no reference model."""
    use_loss: bool = False
    """KL as a term of the loss (GRPO eq. 3; always a mean over all tokens, as in OpenRLHF), or of each token's reward (PPO;
    arXiv 1909.08593, eq. 2)."""
    estimator: KlEstimator = "k1"
    """Log ratio, half its square, or the unbiased positive one (GRPO eq. 4)."""


class AlgoSection(Section):
    advantage: AdvantageSection = AdvantageSection()
    kl: KlSection = KlSection()
    dynamic_filtering_enable: bool = True
    """Dynamic sampling (eq. 11): train only groups with 0 < accuracy < 1, refill until the batch is full."""
    dynamic_filtering_range: Annotated[tuple[FiniteFloat, FiniteFloat], Field(strict=False)] | None = None
    """LOW HIGH: groups whose mean score lies between them are trained, none of both included. Scores are 1 for right and
    0 for wrong, or what a file's or an endpoint's reward gives as ``scores``. null takes groups that are neither all right
    nor all wrong by ``reward.correct_from`` (eq. 11), whatever the scale of the scores."""
    max_filtered_batches: PositiveInt = 20
    """Stop with a diagnosis when this many batches' worth of groups were dropped while one batch was filled."""


def _impossible_rewards(reward: RewardSection) -> Iterator[str]:
    """Yield a sentence for each combination of reward settings that cannot run."""
    for name in reward.remote_url:
        if name != "rule" and not name.endswith(".py") and not re.match(r"https?://[^/]", name):
            yield (
                f"reward.remote_url: {name} is no reward; give rule, a Python file that ends in .py, or an http(s) address"
            )
        if re.search(r",https?://|\.py,", name):
            yield (
                f"reward.remote_url: {name}: OpenRLHF asks addresses with a comma between them in turn; here several are "
                "rewards of which the weighted sum is trained, given as a list; give one address, with a balancer behind it "
                "if need be"
            )
    if reward.weights is not None and len(reward.weights) != len(reward.remote_url):
        yield (
            f"reward.weights: {len(reward.weights)} weights for {len(reward.remote_url)} rewards in reward.remote_url; "
            "give one for each"
        )


class RewardSection(Section):
    remote_url: Annotated[tuple[str, ...], BeforeValidator(_rewards), Field(strict=False, min_length=1)] = ("rule",)
    """One or several of: ``rule`` (eq. 7); a Python file with ``reward_func(queries, prompts, labels)`` as OpenRLHF takes
    it; an http(s) address that speaks OpenRLHF's remote reward protocol. The first decides which answers are right."""
    weights: Annotated[tuple[FiniteFloat, ...], BeforeValidator(_listed), Field(strict=False)] | None = None
    """One for each reward: their weighted sum is trained; null weighs each with 1."""
    answer_form: Literal["any", "number"] = "any"
    """What the rule takes for an answer to a label that is a number: ``any`` expression of that value, or a ``number``
    only, so that ``17*23`` and ``782/2`` are no answers to 391."""
    correct_from: FiniteFloat = 1.0
    """A file's or an endpoint's score (its reward, if it gives no ``scores``) of at least this counts as a right answer."""
    num_workers: PositiveInt = 1
    """Reward worker processes."""
    timeout: PositiveFloat = 5.0
    """Seconds the judging of one response may take before its process is killed and replaced."""
    batch_size: PositiveInt | None = 1
    """Responses of a group that a file or a server is given in one call, which has ``timeout`` for each of them. OpenRLHF
    gives 1; null gives the whole group. A function that only ever looks at ``queries[0]`` needs 1."""
    server_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Seconds that a reward server may be away (refused or broken connections, HTTP 429, 502, 503, 504, no answer within
    ``timeout``) before the run ends. It is asked again with growing pauses; what was generated waits."""
    memory: PositiveInt = 1024
    """MiB that judging may take in one process, beyond what it has once the rewards are loaded."""
    max_attempts: PositiveInt = 3
    """A prompt whose groups could not be scored this many times in a row is dropped instead of tried again."""
    overlong_buffer_len: Annotated[int, Field(ge=0)] | None = None
    """L_cache of the soft overlong punishment (eq. 13), in tokens; null or 0 switches it off."""
    overlong_penalty_factor: PositiveFloat = 1.0
    """Scales the soft overlong punishment."""
    overlong_filtering_enable: bool = True
    """Overlong filtering: truncated responses carry no loss."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if problems := list(_impossible_rewards(self)):
            raise ConfigError("\n".join(problems))
        return self


class DataSection(Section):
    prompt_dataset: str
    """Prompts to train on: a .jsonl, .json or .parquet file."""
    input_key: str = "input"
    """Column with the prompt: text, or a chat list when ``apply_chat_template`` is set. A dotted path reaches into nested
    columns; so does ``label_key``'s."""
    label_key: str | None = "label"
    """Column with the gold answer: ``reward_model.ground_truth`` in DAPO-Math-17k; null for rewards that need none."""
    input_template: str | None = None
    """Text put around each prompt, with ``{}`` where it goes; not with ``apply_chat_template``."""
    apply_chat_template: bool = False
    """Render prompts with the tokenizer's chat template; text is one turn of the user."""
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_mapping)] = {}
    """What the chat template is told besides, as ``enable_thinking: false``."""
    system_prompt: str | None = None
    """First turn of every chat that has no system turn of its own."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """Rows that are no prompts, or leave no room for a response: refuse the run, or leave them out; both name them."""
    max_len: PositiveInt = 22528
    """Longest prompt and response together, in tokens."""


class EvalSection(Section):
    dataset: str | None = None
    """Held-out problems, same format as the prompts; null switches evaluation off."""
    max_samples: PositiveInt | None = None
    """Problems that are taken, the first ones of the file (as OpenRLHF's setting of that name in ``data`` does); null takes all."""
    steps: int = -1
    """Evaluate every this many rollout steps too; -1 only before and after training. Training goes on meanwhile; only
    the next publication waits."""
    n_samples_per_prompt: PositiveInt = 1
    """n: responses of each problem; accuracy is their mean (avg@n), pass@k and maj@k go up to n."""
    temperature: Annotated[float, Field(ge=0, le=HOTTEST)] = 1.0
    """Sampling temperature of the evaluation, apart from training's; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling of the evaluation; the paper takes 0.7."""
    max_new_tokens: PositiveInt | None = None
    """Longest response, in tokens; null takes ``rollout.max_new_tokens``."""


class CkptSection(Section):
    save_steps: int = -1
    """Save a checkpoint to resume from every this many rollout steps and at the end; -1 saves the final model only."""
    max_num: PositiveInt = 3
    """Checkpoints to resume from that are kept, the newest."""


class Config(Section):
    """A whole run."""

    preset: PresetName = "dapo"
    """Algorithm whose settings lie below the run's own."""
    device: Literal["cpu", "cuda"] = "cuda"
    """Kind of machine trainer and engines run on."""
    run: RunSection = RunSection()
    actor: ActorSection
    critic: CriticSection = CriticSection()
    ds: DsSection = DsSection()
    vllm: VllmSection = VllmSection()
    rollout: RolloutSection = RolloutSection()
    train: TrainSection = TrainSection()
    async_: Annotated[AsyncSection, Field(alias="async")] = AsyncSection()
    algo: AlgoSection = AlgoSection()
    reward: RewardSection = RewardSection()
    data: DataSection
    eval: EvalSection = EvalSection()
    ckpt: CkptSection = CkptSection()

    @property
    def trainer_ranks(self) -> int:
        """Data-parallel trainer processes."""
        return self.actor.num_nodes * self.actor.num_gpus_per_node

    @property
    def devices(self) -> int:
        """GPUs, or model-holding processes on a CPU: engines times their tensor-parallel size, and trainer ranks."""
        if self.train.colocate_all:
            return self.trainer_ranks
        return self.vllm.num_engines * self.vllm.tensor_parallel_size + self.trainer_ranks

    @property
    def weight_transfer(self) -> Literal["nccl", "ipc", "object_store"]:
        """``vllm.sync_backend`` with ``auto`` decided."""
        if self.vllm.sync_backend != "auto":
            return self.vllm.sync_backend
        if self.device == "cpu":
            return "object_store"
        return "ipc" if self.train.colocate_all else "nccl"

    @property
    def max_rollout_kl(self) -> float:
        """``train.max_rollout_kl`` with null decided: a thousand times what is healthy in fp32, ten times in bf16."""
        return self.train.max_rollout_kl or (1e-3 if self.ds.param_dtype == "fp32" else 0.1)

    @property
    def updates_per_step(self) -> int:
        """U: gradient updates of one rollout step, over all epochs."""
        return (
            self.rollout.batch_size * self.rollout.n_samples_per_prompt // self.train.batch_size * self.train.max_epochs
        )

    @property
    def gradient_steps(self) -> int:
        """Gradient updates of the run. Batches are full whatever is filtered, so generation rounds do not enter."""
        return self.train.max_steps * self.updates_per_step

    @property
    def lr_warmup_ratio(self) -> float:
        """Warm-up as the share of the gradient steps that OpenRLHF takes.

        It rounds ratio x steps up; half an update less makes it land on ``actor.lr_warmup_steps`` rollout steps.
        """
        return max(0.0, self.actor.lr_warmup_steps * self.updates_per_step - 0.5) / self.gradient_steps

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = list(_impossible(self))
        if problems:
            raise ConfigError("\n".join(problems))
        return self


def _impossible(config: Config) -> Iterator[str]:
    """Yield a sentence for each combination of settings that cannot run."""
    rollout, train, reward, data = config.rollout, config.train, config.reward, config.data
    responses = rollout.batch_size * rollout.n_samples_per_prompt
    if responses % train.batch_size:
        yield (
            f"train.batch_size: {train.batch_size} does not divide a rollout step's responses, rollout.batch_size "
            f"{rollout.batch_size} x rollout.n_samples_per_prompt {rollout.n_samples_per_prompt} = {responses}; "
            f"use a divisor of {responses}, such as {_nearest_divisor(responses, train.batch_size)}"
        )
    if train.batch_size % config.trainer_ranks:
        yield (
            f"train.batch_size: {train.batch_size} is not a multiple of the {config.trainer_ranks} trainer ranks "
            f"(actor.num_nodes x actor.num_gpus_per_node); use a multiple of {config.trainer_ranks}"
        )
    if rollout.top_p < 1:
        yield (
            f"rollout.top_p: {rollout.top_p:g} biases training: engines would give the log-probs of the truncated "
            "distribution and the trainer those of the whole one, so that importance weights are off by the mass cut away "
            "(at 0.8 they are 0.79 on average, and 38 % are clipped); use 1. Evaluation has its own eval.top_p"
        )
    yield from _impossible_algorithm(config)
    if reward.overlong_buffer_len and reward.overlong_buffer_len > rollout.max_new_tokens:
        yield (
            f"reward.overlong_buffer_len: {reward.overlong_buffer_len} (L_cache) is larger than rollout.max_new_tokens "
            f"{rollout.max_new_tokens} (L_max); use at most {rollout.max_new_tokens}"
        )
    if data.max_len <= rollout.max_new_tokens:
        yield (
            f"data.max_len: {data.max_len} leaves no room for a prompt beside rollout.max_new_tokens "
            f"{rollout.max_new_tokens}; use more than {rollout.max_new_tokens}"
        )
    low, high = config.algo.advantage.is_correction_threshold
    if not 0 <= low < high:
        yield f"algo.advantage.is_correction_threshold: {low} {high} is not a range; use 0 <= LOW < HIGH"
    if reward.timeout > config.async_.reward_timeout:
        yield (
            f"reward.timeout: {reward.timeout:g} s for one response is more than async.reward_timeout "
            f"{config.async_.reward_timeout:g} s for its group; use at most that"
        )
    yield from _impossible_prompts(config)
    if config.eval.steps == 0 or config.eval.steps < -1:
        yield f"eval.steps: {config.eval.steps} is neither -1 nor a positive number of steps"
    if 0 < config.eval.temperature < COLDEST:
        yield (
            f"eval.temperature: {config.eval.temperature:g} is colder than vLLM samples; use 0, which is greedy, or at "
            f"least {COLDEST}"
        )
    if config.eval.max_new_tokens is not None and data.max_len <= config.eval.max_new_tokens:
        yield (
            f"eval.max_new_tokens: {config.eval.max_new_tokens} leaves no room for a problem within data.max_len "
            f"{data.max_len}; use less than {data.max_len}, or raise data.max_len"
        )
    if config.ckpt.save_steps == 0 or config.ckpt.save_steps < -1:
        yield f"ckpt.save_steps: {config.ckpt.save_steps} is neither -1 nor a positive number of steps"
    yield from _impossible_on_device(config)


TEMPLATE_ARGUMENTS = {
    "conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
"""What ``apply_chat_template`` is told, or must not be told, by this project."""


def _impossible_prompts(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting of how prompts are read that contradicts another."""
    data = config.data
    if data.input_template is not None:
        try:
            input_template(data.input_template)
        except ValueError as error:
            yield f"data.input_template: {error}"
        if data.apply_chat_template:
            yield (
                "data.input_template: has no place beside data.apply_chat_template true, whose template stands around the "
                "prompt; use one of them, or data.system_prompt"
            )
    for name, given in (("system_prompt", data.system_prompt), ("chat_template_kwargs", data.chat_template_kwargs)):
        if given and not data.apply_chat_template:
            yield f"data.{name}: {given!r} is for the chat template; set data.apply_chat_template true"
    if taken := sorted(TEMPLATE_ARGUMENTS & data.chat_template_kwargs.keys()):
        yield f"data.chat_template_kwargs: {', '.join(taken)} is not for the template to be told"
    if data.label_key is None and "rule" in config.reward.remote_url:
        yield "data.label_key: null leaves the reward rule nothing to compare with; name the column with the answers"


def _impossible_algorithm(config: Config) -> Iterator[str]:
    """Yield a sentence for each choice of the algorithm that does not go with another."""
    advantage, kl, responses = config.algo.advantage, config.algo.kl, config.rollout.n_samples_per_prompt
    name, traits = advantage.estimator, ESTIMATORS[advantage.estimator]
    if responses < traits.smallest_group:
        yield (
            f"rollout.n_samples_per_prompt: {responses} leaves nothing to compare a response with; "
            f"algo.advantage.estimator {name} needs at least {traits.smallest_group}, gae and reinforce do with 1"
        )
    elif responses == 1 and config.algo.dynamic_filtering_enable:
        yield (
            "algo.dynamic_filtering_enable: true drops every prompt of a single response, which is all right or all "
            "wrong; use false, or rollout.n_samples_per_prompt of at least 2"
        )
    if advantage.gamma != 1 and not traits.discounted:
        yield (
            f"algo.advantage.gamma: {advantage.gamma:g} has no meaning for algo.advantage.estimator {name}; use 1, or gae or "
            "reinforce"
        )
    if advantage.lambd != 1 and not traits.critic:
        yield f"algo.advantage.lambd: {advantage.lambd:g} has no meaning for algo.advantage.estimator {name}; use 1, or gae"
    if advantage.is_correction_level == "seq" and advantage.is_correction_mode == "clip":
        yield (
            "algo.advantage.is_correction_mode: clip has no meaning for algo.advantage.is_correction_level seq, which keeps "
            "or drops whole responses; use mask, or level token"
        )
    if config.actor.policy_loss_type == "gspo" and config.actor.loss_agg_mode == "token-mean":
        yield (
            "actor.loss_agg_mode: token-mean does not go with actor.policy_loss_type gspo, whose loss is a mean over "
            "responses (OpenRLHF takes that without saying so); use seq-mean-token-mean"
        )
    low, high = config.algo.dynamic_filtering_range or (0.0, 1.0)
    if not low < high:
        yield f"algo.dynamic_filtering_range: {low:g} {high:g} is not a range; use LOW < HIGH, such as 0 1"
    if advantage.no_std_norm and not traits.whitened:
        yield (
            f"algo.advantage.no_std_norm: true has no meaning for algo.advantage.estimator {name}, which does not "
            "whiten; use false (dr_grpo is group_norm without the standard deviation)"
        )
    if config.critic.model_name_or_path is not None and not traits.critic:
        yield (
            f"critic.model_name_or_path: {config.critic.model_name_or_path} is not used by algo.advantage.estimator "
            f"{name}; use null, or gae"
        )
    if kl.use_loss and kl.init_coef > 0 and kl.estimator == "k1":
        yield (
            "algo.kl.estimator: k1 as a loss has no gradient on average, so it holds nothing back; use k3 or k2, or "
            "algo.kl.use_loss false"
        )


def _impossible_on_device(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting that the kind of machine cannot serve."""
    if config.device == "cpu":
        if config.ds.attn_implementation == "flash_attention_2":
            yield "ds.attn_implementation: flash_attention_2 needs a GPU; use sdpa with device: cpu"
        if config.ds.adam_offload:
            yield "ds.adam_offload: true has nowhere to offload from with device: cpu; use false"
        if config.ds.param_dtype == "fp16":
            yield "ds.param_dtype: fp16 has no loss scaling on a CPU; use fp32 or bf16 with device: cpu"
        if config.train.colocate_all:
            yield "train.colocate_all: true is for GPUs; processes share the cores of a CPU anyway, use false"
    elif config.ds.param_dtype == "fp32" and config.ds.attn_implementation == "flash_attention_2":
        yield "ds.param_dtype: fp32 is not supported by flash_attention_2; use bf16, or sdpa"
    yield from _impossible_accumulation(config)
    yield from _impossible_transfer(config)
    if config.device == "cuda" and config.train.colocate_all:
        yield from _impossible_to_share(config)


def _impossible_accumulation(config: Config) -> Iterator[str]:
    """Yield a sentence if DeepSpeed cannot add gradients up in the data type that was asked for."""
    ds = config.ds
    if ds.grad_accum_dtype in (None, ds.param_dtype):
        return
    if ds.zero_stage == 1 and ds.param_dtype == "bf16":
        yield (
            f"ds.zero_stage: 1 cannot add bf16 gradients up in ds.grad_accum_dtype {ds.grad_accum_dtype}; use 2, which "
            "takes less memory, or ds.grad_accum_dtype bf16, which loses small gradients over many micro-batches"
        )
    if ds.zero_stage == 2 and ds.adam_offload and config.device == "cuda":
        yield (
            f"ds.adam_offload: true with ds.zero_stage 2 adds gradients up in {ds.param_dtype}, whatever "
            f"ds.grad_accum_dtype {ds.grad_accum_dtype} says; use ds.zero_stage 3, or ds.grad_accum_dtype {ds.param_dtype}"
        )


MOST_SHARED_MEMORY = 0.7
"""Share of a GPU's memory that an engine may claim where a trainer rank lives on the same GPU."""


def _impossible_transfer(config: Config) -> Iterator[str]:
    """Yield a sentence if weights cannot reach the engines the way that was asked for."""
    backend = config.vllm.sync_backend
    if config.device == "cpu" and backend in ("nccl", "ipc"):
        yield f"vllm.sync_backend: {backend} needs GPUs; use auto or object_store with device: cpu"
    elif backend == "nccl" and config.train.colocate_all:
        yield (
            "vllm.sync_backend: nccl refuses two processes on one GPU, which train.colocate_all asks for; use auto or ipc"
        )
    elif backend == "ipc" and config.device == "cuda" and not config.train.colocate_all:
        yield "vllm.sync_backend: ipc needs engine and trainer on the same GPU (train.colocate_all); use auto or nccl"
    elif backend == "object_store" and config.vllm.tensor_parallel_size > 1:
        yield (
            f"vllm.sync_backend: object_store cannot feed an engine of vllm.tensor_parallel_size "
            f"{config.vllm.tensor_parallel_size}; use auto or nccl"
        )


def _impossible_to_share(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting that engine and trainer on one GPU rule out."""
    vllm = config.vllm
    if vllm.tensor_parallel_size > 1:
        yield (
            f"vllm.tensor_parallel_size: {vllm.tensor_parallel_size} needs GPUs of its own; use 1 with "
            "train.colocate_all, or train.colocate_all false"
        )
    elif vllm.num_engines != config.trainer_ranks:
        yield (
            f"vllm.num_engines: {vllm.num_engines} engines cannot each share a GPU with one of the "
            f"{config.trainer_ranks} trainer ranks (train.colocate_all); use {config.trainer_ranks}"
        )
    if vllm.kv_cache_memory_bytes is None and vllm.gpu_memory_utilization > MOST_SHARED_MEMORY:
        yield (
            f"vllm.gpu_memory_utilization: {vllm.gpu_memory_utilization:g} leaves the trainer on the same GPU too little "
            f"(train.colocate_all); use at most {MOST_SHARED_MEMORY}, such as 0.4"
        )


def _nearest_divisor(number: int, target: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - target))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-6`` as text; everybody who types it means a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML file, apply dotted overrides, check everything. Raises :class:`ConfigError`, for a
    file that is missing or broken :class:`SettingsUnreadable`.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise SettingsUnreadable(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsUnreadable(f"{path} is not a text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsUnreadable(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise SettingsUnreadable(f"{path} holds {type(loaded).__name__}, not a mapping of sections to settings")
    settings: dict[str, Any] = {}
    for key, value in [*loaded.items(), *(overrides or {}).items()]:
        _assign(settings, str(key), value)
    return build_config(settings, source=str(path))


def build_config(settings: Mapping[str, Any], *, source: str) -> Config:
    """Check a nested mapping of settings, laid over its preset. ``source`` names it in errors.

    Raises :class:`ConfigError`.
    """
    return _checked(Config, _over_preset(settings), source)


def build_reward(settings: Mapping[str, Any], *, source: str) -> RewardSection:
    """Check the ``reward.*`` settings alone, as :func:`build_config` checks all. Raises :class:`ConfigError`."""
    return _checked(RewardSection, settings, source)


def _checked(section: type[AnySection], settings: Mapping[str, Any], source: str) -> AnySection:
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join([f"{source} cannot be run:", *(f"  {line}" for line in lines)])) from None


def _over_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    layered: dict[str, Any] = {}
    name = settings.get("preset", Config.model_fields["preset"].default)
    if name in list(PRESETS):  # another is refused with everything else
        for dotted, value in PRESETS[name].settings.items():
            _assign(layered, dotted, value)
    _overlay(layered, settings)
    return layered


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Lay nested settings over others, value by value; an empty section changes nothing."""
    for key, value in above.items():
        inner = below.get(key)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            _overlay(inner, value)
        elif not isinstance(inner, dict) or value is not None:
            below[key] = value


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Read ``--a.b VALUE``, ``--a.b=VALUE``, ``a.b=VALUE`` and bare ``--a.b`` (true) into dotted overrides.

    Several values after one key make a list: ``--actor.eps_clip_low_high 0.2 0.28``.
    """
    sections = {field.alias or name for name, field in Config.model_fields.items()}  # other text with "=" is a value
    overrides: dict[str, Any] = {}
    values: list[str] = []
    key = ""

    def finish() -> None:
        if key:
            overrides[key] = True if not values else _scalar(values[0]) if len(values) == 1 else [*map(_scalar, values)]

    for argument in arguments:
        match = re.match(r"^(--)?([A-Za-z_][\w.]*)=(.*)$", argument, re.DOTALL)
        if match and (match[1] or not key or match[2].split(".")[0] in sections):
            finish()
            key, values = match[2], [match[3]]
        elif re.match(r"^--[A-Za-z_]", argument):
            finish()
            key, values = argument[2:], []
        elif not key:
            raise ConfigError(f"cannot read the argument {argument!r}; settings are given as --section.key VALUE")
        else:
            values.append(argument)
    finish()
    return overrides


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads back to an equal one."""
    settings = config.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def preset_changes(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Settings of the configuration's preset that the run has otherwise: name, the run's value, the preset's."""
    values = config.model_dump(mode="json", by_alias=True)
    for dotted, expected in PRESETS[config.preset].settings.items():
        value: Any = values
        for part in dotted.split("."):
            value = value[part]
        if value != expected:
            yield dotted, value, expected


def settings_of(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted name."""
    for field_name, field in section.model_fields.items():
        name = prefix + (field.alias or field_name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings_of(field.annotation, name + ".")
        else:
            yield name, field


def setting_names() -> dict[str, str]:
    """Every dotted name with its description."""
    return {name: field.description or "" for name, field in settings_of()}


def _scalar(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) else value  # "Question: {}" is text; no setting is a mapping


def _assign(settings: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for name in sections:
        inner = settings[name] = {} if settings.get(name) is None else settings[name]
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}: {name} is a setting, not a section")
        settings = inner
    _overlay(settings, {key: value})


def _explain(problem: Any) -> str:
    """One sentence for one of pydantic's errors: key, value, remedy."""
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause).replace("\n", "\n  ")
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        names = setting_names()
        sections = {name.split(".")[0] for name in names} if "." not in key else set()
        near = difflib.get_close_matches(key, sections, n=1) or difflib.get_close_matches(key, names, n=1, cutoff=0.4)
        return f"{key}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"{key}: must be set"
    message = problem["msg"]
    hint = f"; for the text write '\"{problem['input']}\"'" if problem["type"] == "string_type" else ""
    return f"{key}: {problem['input']!r} is not accepted: {message[0].lower()}{message[1:]}{hint}"
