"""Settings of the trainer: policy, critic, optimizer, DeepSpeed, steps (pydantic)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from dapo_openrlhf.algorithm.choices import Attention, DataType, LossAggMode, PolicyLossType
from dapo_openrlhf.config.choices import LrScheduler, ZeroStage
from dapo_openrlhf.config.presets import PAPER
from dapo_openrlhf.config.section import Fraction, PositiveFloat, PositiveInt, Section, listed


class AdamSection(Section):
    lr: PositiveFloat = PAPER["actor.adam.lr"]
    """Peak learning rate."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: PositiveFloat = 1e-8
    """Constant added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = PAPER["actor.adam.weight_decay"]
    """Decoupled weight decay; biases and norms are exempt."""


class ActorSection(Section):
    model_name_or_path: str
    """Hugging Face name or folder of the model to train."""
    trust_remote_code: bool = False
    """Run the Python that comes with the models of actor and critic (``auto_map`` in config.json or
    tokenizer_config.json), tokenizer included; read it before. False refuses such models."""
    num_nodes: PositiveInt = 1
    """Number of machines that train; each holds ``actor.num_gpus_per_node`` ranks."""
    num_gpus_per_node: PositiveInt = 1
    """Number of trainer ranks per node: one GPU each, or one CPU process each with ``device: cpu``."""
    eps_clip_low_high: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = PAPER[
        "actor.eps_clip_low_high"
    ]
    """Clip range (eps_low, eps_high) of the ratio, eq. 8; Clip-Higher is eps_high > eps_low (eq. 10)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = PAPER["actor.dual_clip"]
    """Dual-clip constant c > 1 for negative advantages; null switches dual clipping off, as in the paper."""
    policy_loss_type: PolicyLossType = PAPER["actor.policy_loss_type"]
    """``ppo``: the ratio of each token, clipped; ``gspo``: that of the whole response (arXiv 2507.18071, eq. 7, whose clip
    range is some 3e-4); ``cispo``: the ratio, truncated at 1 + eps_high, as a weight of the log-prob (arXiv 2506.13585);
    ``dppo_tv``: tokens whose probability has moved too far are dropped (arXiv 2602.04879); ``sapo``: a soft gate in place
    of clipping (arXiv 2511.20347); ``gmpo``: the geometric mean of a response's clipped ratios (arXiv 2507.20673, whose
    range is 0.33 0.49). docs/algorithms.md says when to take which."""
    dppo_delta: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Largest distance of a token's probability from the rollout's in the direction of its advantage, for ``dppo_tv``."""
    sapo_tau: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (1.05, 1.0)
    """Temperatures of ``sapo`` for negative and for positive advantages: the larger, the narrower the gate."""
    loss_agg_mode: LossAggMode = PAPER["actor.loss_agg_mode"]
    """What has equal weight in the loss: with ``token-mean`` all tokens (DAPO eq. 12); with ``seq-mean-token-mean`` all
    responses (GRPO, DAPO eq. 5); with ``prompt-mean-token-mean`` all prompts (DAPO eq. 8 taken literally).
    ``seq-mean-token-sum-norm`` divides a response's sum by the constant rollout.max_new_tokens (Dr. GRPO)."""
    entropy_coef: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Coefficient of the entropy bonus in the loss, a mean over the update's tokens as in OpenRLHF; 0 gives none. Entropy is
    always measured. With a bonus its gradient takes memory for the logits of one chunk more."""
    aux_loss_coef: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Coefficient of the load-balancing loss of a mixture of experts (arXiv 2101.03961, eq. 4), transformers' own, at which
    equal loads give the number of experts that a token goes to. It is computed for each micro-batch over prompts and
    responses, and weighted by the micro-batch's share of the update's tokens. 0 gives none, and a dense model has none. A
    critic's routers get none."""
    adam: AdamSection = AdamSection()
    lr_scheduler: LrScheduler = PAPER["actor.lr_scheduler"]
    """Schedule over the run's gradient steps; its lengths are given in rollout steps, however many prompts those
    take."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = PAPER["actor.lr_warmup_steps"]
    """Length of the linear warm-up, in rollout steps."""
    max_norm: Annotated[float, Field(ge=0)] = PAPER["actor.max_norm"]
    """Largest gradient norm, to which larger ones are clipped; 0 switches clipping off."""
    gradient_checkpointing_enable: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations, which takes less memory and is
    a third slower."""


class CriticAdamSection(AdamSection):
    lr: PositiveFloat = 9e-6
    """Peak learning rate of the critic; its schedule is the actor's."""


class CriticSection(Section):
    model_name_or_path: str | None = None
    """Model that the critic starts from, with a new value head where it has none; null takes the actor's model."""
    adam: CriticAdamSection = CriticAdamSection()
    value_clip: PositiveFloat | None = 0.5
    """How far a value may move within a step before its loss is clipped (arXiv 2005.12729); null switches clipping
    off."""
    save_value_network: bool = False
    """Save the critic's model too, in each saved model's folder ``critic``, for ``critic.model_name_or_path``."""


class LoraSection(Section):
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters (LoRA, arXiv 2106.09685) that are trained in place of the model; 0 trains the whole model.
    Adapters take some ten times the learning rate (docs/lora.md)."""
    alpha: PositiveInt = 16
    """What the adapters add to the weights is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout before the adapters; only 0: with any other the trained policy would not be the one that samples."""
    target_modules: Annotated[tuple[str, ...], BeforeValidator(listed), Field(strict=False, min_length=1)] = (
        "all-linear",
    )
    """Linear layers that get an adapter, by the last parts of their names: ``q_proj v_proj``. ``all-linear`` is every one
    but the output layer."""


class DsSection(Section):
    zero_stage: ZeroStage = 2
    """DeepSpeed ZeRO stage."""
    param_dtype: DataType = "bf16"
    """Data type of the model, in trainer and engines alike; log-probs and losses are always float32."""
    grad_accum_dtype: DataType | None = "fp32"
    """Data type in which gradients are accumulated over an update's micro-batches; null takes ``param_dtype``, as
    OpenRLHF does by default. bf16 loses what later micro-batches add; fp32 takes 2 bytes more for each parameter,
    spread over the trainer ranks."""
    attn_implementation: Attention = "flash_attention_2"
    """Attention implementation of the trainer; sequences are packed with either."""
    adam_offload: bool = False
    """Keep the optimizer's states in host memory."""
    use_liger_kernel: bool = False
    """Norms, rotary embeddings and gated layers of the trainer's models from the package liger-kernel, where that is
    installed; for GPUs, and for the families that it knows."""
    lora: LoraSection = LoraSection()


class TrainSection(Section):
    batch_size: PositiveInt = PAPER["train.batch_size"]
    """Number of responses in one gradient update; a step has U = rollout.batch_size * n_samples_per_prompt / batch_size
    updates."""
    max_tokens_per_gpu: PositiveInt = 32768
    """Most prompt and response tokens of one micro-batch; a single sequence that is longer gets one of its own."""
    max_epochs: PositiveInt = PAPER["train.max_epochs"]
    """Number of passes over each rollout step's batch."""
    max_steps: PositiveInt = 400
    """Number of rollout steps in the run."""
    max_hours: PositiveFloat | None = None
    """Hours after which the run ends, once the step in training is done: with a checkpoint, the model and the last
    evaluation, which take their time besides. They count from the command; a resumed run has as many again."""
    partial_rollout_enable: bool = True
    """Engines take new weights during generation and keep their requests; with false each first finishes the requests
    it has begun, and with an environment whole rollouts, so that each has one version."""
    agent_func_path: str | None = None
    """A Python file with an environment that answers the policy turn by turn: OpenRLHF's ``AgentExecutor``, or an
    ``Environment`` of this project. It gives the rewards. null: a rollout is one response, judged by ``reward.remote_url``."""
    enable_ema: bool = False
    """Keep an exponential average of the policy's weights, in float32 in host memory, updated after each gradient step. It is
    saved in the folder ``ema`` of each saved model and checkpoint; engines and evaluations take the policy itself."""
    ema_beta: Annotated[float, Field(ge=0, lt=1)] = 0.992
    """Share of the old average that an update keeps; the rest is the new weights'. 0.992 averages over some 125 gradient
    steps."""
    max_bad_updates: PositiveInt = 3
    """How many updates in a row may have a number that is not finite (loss, log-prob, advantage, gradient norm) until
    the last of them ends the run; each is stopped before the optimizer step."""
    max_rollout_kl: Annotated[float, Field(gt=0)] | None = None
    """Largest difference between engines and trainer on tokens sampled with exactly the same weights (metric
    ``rollout_kl/age_0``, in nats per token). Beyond it they are not the same policy, and the run stops. null takes 1e-3
    with ``ds.param_dtype`` fp32 and 0.1 otherwise; .inf never stops."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Random seed for the order of prompts, the cut into updates, and sampling; each response of an evaluation has a seed
    of its own, so that the same weights give the same responses."""
    full_determinism_enable: bool = False
    """Each response in training has a seed of its own too, which follows from ``train.seed``, prompt and order of dispatch,
    and torch computes with its deterministic algorithms: two runs with ``async.max_staleness`` 0 are then equal, as far as
    an engine computes a sequence alike in any company (on CUDA set VLLM_BATCH_INVARIANT=1). Costs engines some speed."""
    grace_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 25.0
    """Seconds after SIGTERM, SIGINT or SIGHUP in which to finish the step in training and make a checkpoint; batch
    systems allow 30."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often within an hour a trainer with a rank that has died or hangs is replaced by a new one, which goes on from the
    newest good checkpoint within the same run, until the next loss ends the run; engines stay."""
    check_agreement: bool = True
    """Before the first step, compare the trainer's log-probs with the model's own forward pass and with each engine's, and
    refuse to train a policy that is not the one that samples. False trains it nevertheless."""
    colocate_all: bool = False
    """Engine i and trainer rank i share GPU i: for machines with a single GPU. Leave the trainer its part of the memory
    with ``vllm.gpu_memory_utilization``."""
