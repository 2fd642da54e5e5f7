"""Settings of the trainer: policy, critic, optimizer, DeepSpeed, steps (pydantic)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_openrlhf.algorithm.choices import Attention, DataType, LossAggMode, PolicyLossType
from dapo_openrlhf.config.choices import LrScheduler, ZeroStage
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import Fraction, PositiveFloat, PositiveInt, Section


class AdamSection(Section):
    lr: PositiveFloat = PAPER["actor.adam.lr"]
    """Peak learning rate."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = PAPER["actor.adam.weight_decay"]
    """Decoupled weight decay; biases and norms are exempt."""


class ActorSection(Section):
    model_name_or_path: str
    """Hugging Face name or folder of the model to train."""
    num_nodes: PositiveInt = 1
    """Machines that train; each holds ``actor.num_gpus_per_node`` ranks."""
    num_gpus_per_node: PositiveInt = 1
    """Trainer ranks per node: one GPU each, or one CPU process each with ``device: cpu``."""
    eps_clip_low_high: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = PAPER[
        "actor.eps_clip_low_high"
    ]
    """Clip range (eps_low, eps_high) of the ratio, eq. 8; Clip-Higher is eps_high > eps_low (eq. 10)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = PAPER["actor.dual_clip"]
    """Dual-clip constant c > 1 for negative advantages, or null for none (the paper has none)."""
    policy_loss_type: PolicyLossType = PAPER["actor.policy_loss_type"]
    """Ratio of each token (``ppo``), or of the whole response (``gspo``, arXiv 2507.18071, eq. 7, whose clip range is
    some 3e-4)."""
    loss_agg_mode: LossAggMode = PAPER["actor.loss_agg_mode"]
    """``token-mean``: all tokens alike (DAPO eq. 12); ``seq-mean-token-mean``: all responses (GRPO, DAPO eq. 5);
    ``prompt-mean-token-mean``: all prompts (DAPO eq. 8 to the letter); ``seq-mean-token-sum-norm``: a response's sum
    over the constant rollout.max_new_tokens (Dr. GRPO)."""
    adam: AdamSection = AdamSection()
    lr_scheduler: LrScheduler = PAPER["actor.lr_scheduler"]
    """Schedule over the run's gradient steps; its lengths are given in rollout steps, however many prompts they took."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = PAPER["actor.lr_warmup_steps"]
    """Linear warm-up, in rollout steps."""
    max_norm: Annotated[float, Field(ge=0)] = PAPER["actor.max_norm"]
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
    zero_stage: ZeroStage = 2
    """DeepSpeed ZeRO stage."""
    param_dtype: DataType = "bf16"
    """Model data type in trainer and engines alike; log-probs and losses are float32 always."""
    grad_accum_dtype: DataType | None = "fp32"
    """In which gradients add up over an update's micro-batches; null takes ``param_dtype``, as OpenRLHF does by default.
    bf16 loses what the later ones add; fp32 takes 2 bytes more for each parameter, spread over the trainer ranks."""
    attn_implementation: Attention = "flash_attention_2"
    """Attention of the trainer, over packed sequences either way."""
    adam_offload: bool = False
    """Keep the optimizer's states in host memory."""


class TrainSection(Section):
    batch_size: PositiveInt = PAPER["train.batch_size"]
    """Responses of one gradient update; U = rollout.batch_size * n_samples_per_prompt / batch_size updates a step."""
    max_tokens_per_gpu: PositiveInt = 32768
    """Budget of one micro-batch, prompt and response tokens; a longer single sequence goes alone."""
    max_epochs: PositiveInt = PAPER["train.max_epochs"]
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
    grace_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 25.0
    """Seconds after SIGTERM, SIGINT or SIGHUP within which the step in training is finished and a checkpoint made; batch
    systems allow 30."""
    check_agreement: bool = True
    """Before the first step, compare the trainer's log-probs with the model's own forward pass and with each engine's, and
    refuse to train a policy that is not the one that samples. False trains it nevertheless."""
    colocate_all: bool = False
    """Engine i and trainer rank i share GPU i: for machines with a single GPU. Leave the trainer its part of the memory
    with ``vllm.gpu_memory_utilization``."""
