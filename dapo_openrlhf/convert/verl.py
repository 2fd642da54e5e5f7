"""verl's configurations of GRPO and DAPO as settings (standard library and the configuration)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dapo_openrlhf.config.yaml_text import value_of
from dapo_openrlhf.convert.conversion import (
    Conversion,
    NotConvertible,
    Placement,
    divided,
    is_true,
    number,
    place,
    whole,
)
from dapo_openrlhf.convert.verl_correction import convert_correction
from dapo_openrlhf.convert.verl_data import convert_data
from dapo_openrlhf.convert.verl_model import convert_model
from dapo_openrlhf.convert.verl_names import (
    ACTOR,
    AGGREGATIONS,
    CRITIC_DEFAULTS,
    DEFAULTS,
    ESTIMATORS,
    HARMLESS,
    KL_TYPES,
    LACKING,
    LOSSES,
    ONE_TO_ONE,
    ROLLOUT,
)
from dapo_openrlhf.convert.verl_taken import Taken


def overrides_of(words: Sequence[str]) -> dict[str, Any]:
    """Hydra's overrides among the words of a command: ``a.b=value``, also with ``+`` or ``++`` in front."""
    overrides: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.lstrip("+").partition("=")
        if equals and "." in name and not name.startswith("-"):
            overrides.pop(name, None)
            overrides[name] = text if "$" in text else value_of(text)
    return overrides


def flattened(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping by dotted names."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def convert_verl(given: Mapping[str, Any], *, module: str = "") -> Conversion:
    """Translate verl's settings by dotted name; ``module`` is the one that was to read them, which may run ahead.

    Raises ``NotConvertible`` if the model or the prompts are missing, or a number is not written out.
    """
    conversion = Conversion()
    conversion.settings |= DEFAULTS
    taken = Taken(given)
    for name, ours in ONE_TO_ONE.items():
        if (value := taken.get(name)) is not None:
            conversion.settings[ours] = value
    parts = (convert_data, convert_model, _algorithm, _loss, _batches, _overlong, _schedule, _logging, _placement)
    for part in (*parts, convert_correction):
        part(taken, conversion)
    _asynchrony(taken, conversion, module)
    _say_what_is_left(taken, given, conversion)
    for name, theirs in (
        ("actor.model_name_or_path", "actor_rollout_ref.model.path"),
        ("data.prompt_dataset", "data.train_files"),
    ):
        if not conversion.settings.get(name):
            raise NotConvertible(f"{theirs} is not given, without which there is nothing to train")
    return conversion


def _say_what_is_left(taken: Taken, given: Mapping[str, Any], conversion: Conversion) -> None:
    for name in taken.left():
        if given[name] in (None, False, "") or _among(name, HARMLESS) is not None:
            continue
        known = _among(name, LACKING)
        conversion.lacks(name, LACKING[known] if known else f"{given[name]!r} has no counterpart here")


def _among(name: str, known: Iterable[str]) -> str | None:
    """The name, or the beginning of it, that is known."""
    return next((one for one in known if name == one or name.startswith(f"{one}.")), None)


def _algorithm(taken: Taken, conversion: Conversion) -> None:
    settings, name = conversion.settings, taken.get("algorithm.adv_estimator") or "gae"
    estimator = ESTIMATORS.get(str(name))
    if estimator is None:
        raise NotConvertible(
            f"algorithm.adv_estimator: {name} has no counterpart; those of {', '.join(ESTIMATORS)} have"
        )
    by_deviation = taken.get("algorithm.norm_adv_by_std_in_grpo")
    if estimator == "group_norm" and by_deviation is not None and not is_true(by_deviation):
        estimator = "dr_grpo"
    settings["algo.advantage.estimator"] = estimator
    gamma, lam = taken.get("algorithm.gamma"), taken.get("algorithm.lam")
    if estimator in ("gae", "reinforce"):
        settings["algo.advantage.gamma"] = gamma or 1.0
    if estimator == "gae":
        settings["algo.advantage.lambd"] = lam or 1.0
        settings |= {name: value for name, value in CRITIC_DEFAULTS.items() if name not in settings}
    else:  # there is no critic, which verl's own defaults describe all the same
        taken.below("critic")
        for name in [name for name in settings if name.startswith("critic.")]:
            del settings[name]
    _kl(taken, conversion)
    metric = taken.get("algorithm.filter_groups.metric")
    if metric not in (None, "acc"):
        conversion.differs(
            "algorithm.filter_groups.metric",
            f"{metric} decides there; here a group is kept if right and wrong are in it",
        )
    if taken.get("algorithm.filter_groups.max_num_gen_batches"):
        conversion.differs(
            "algorithm.filter_groups.max_num_gen_batches",
            "algo.max_filtered_batches counts batches' worth of dropped groups",
        )


def _kl(taken: Taken, conversion: Conversion) -> None:
    settings = conversion.settings
    in_loss, in_reward = is_true(taken.get(f"{ACTOR}.use_kl_loss")), is_true(taken.get("algorithm.use_kl_in_reward"))
    loss_coef = taken.number(f"{ACTOR}.kl_loss_coef", default=0.001)
    reward_coef = taken.number("algorithm.kl_ctrl.kl_coef", "critic.kl_ctrl.kl_coef", default=0.001)
    in_loss_kind, in_reward_kind = taken.get(f"{ACTOR}.kl_loss_type"), taken.get("algorithm.kl_penalty")
    adaptive = str(taken.get("algorithm.kl_ctrl.type")) == "adaptive"
    settings["algo.kl.init_coef"] = loss_coef if in_loss else reward_coef if in_reward else 0.0
    if in_loss and in_reward and reward_coef:
        conversion.lacks("algorithm.use_kl_in_reward", "there is one KL here; that of the loss is written")
    elif in_reward and adaptive:
        conversion.differs("algorithm.kl_ctrl.type", f"the coefficient of the KL stays at {reward_coef:g}")
    if not settings["algo.kl.init_coef"]:
        return
    name, default = (f"{ACTOR}.kl_loss_type", "k3") if in_loss else ("algorithm.kl_penalty", "k1")
    kind = (in_loss_kind if in_loss else in_reward_kind) or default
    estimator = KL_TYPES.get(str(kind).removesuffix("+"))
    if estimator is None:
        conversion.differs(name, f"{kind} is not here; {default} is written")
    settings |= {"algo.kl.use_loss": in_loss, "algo.kl.estimator": estimator or default}
    if in_loss and str(kind).endswith("+"):
        settings["algo.kl.unbiased_gradient"] = True
        conversion.differs(name, "the gradient of algo.kl.unbiased_gradient is weighted by the ratio, too")


def _loss(taken: Taken, conversion: Conversion) -> None:
    settings = conversion.settings
    mode = taken.get(f"{ACTOR}.policy_loss.loss_mode", f"{ACTOR}.loss_mode") or "vanilla"
    kind = LOSSES.get(str(mode))
    if kind is None:
        conversion.lacks(
            f"{ACTOR}.policy_loss.loss_mode", f"{mode} is not here; ppo is written. There are {', '.join(LOSSES)}"
        )
        kind = "ppo"
    settings["actor.policy_loss_type"] = kind
    both = taken.number(f"{ACTOR}.clip_ratio", default=0.2)
    low = taken.number(f"{ACTOR}.clip_ratio_low", default=both)
    high = taken.number(f"{ACTOR}.clip_ratio_high", default=both)
    if kind == "gmpo":  # theirs is the range of the log ratio
        low, high = -math.expm1(-low), math.expm1(high)
    tau = taken.number(f"{ACTOR}.tau_neg", default=1.05), taken.number(f"{ACTOR}.tau_pos", default=1.0)
    if kind == "sapo":
        settings["actor.sapo_tau"] = tau
    if kind == "cispo" and low < 1:
        conversion.differs(f"{ACTOR}.clip_ratio_low", f"ratios below {1 - low:g} are not raised to it, as in the paper")
    if kind == "dppo_tv":
        settings["actor.dppo_delta"] = high
        if low != high:
            conversion.differs(f"{ACTOR}.clip_ratio_low", f"one bound for both directions: actor.dppo_delta {high:g}")
    else:
        settings["actor.eps_clip_low_high"] = (low, high)
    dual = taken.number(f"{ACTOR}.clip_ratio_c", default=3.0)
    settings["actor.dual_clip"] = dual if kind == "ppo" else None  # verl's gspo has none
    token_level = taken.get(f"{ACTOR}.use_token_level_loss")
    default = "seq-mean-token-mean" if token_level is not None and not is_true(token_level) else "token-mean"
    aggregation = str(taken.get(f"{ACTOR}.loss_agg_mode") or default)
    if aggregation not in AGGREGATIONS:
        conversion.differs(
            f"{ACTOR}.loss_agg_mode",
            f"{aggregation} is not here; seq-mean-token-sum-norm, which divides by a constant, is written",
        )
        aggregation = "seq-mean-token-sum-norm"
    if kind in ("gspo", "gmpo") and aggregation == "token-mean":
        aggregation = "seq-mean-token-mean"
    settings["actor.loss_agg_mode"] = aggregation


def _batches(taken: Taken, conversion: Conversion) -> None:
    settings = conversion.settings
    samples = whole(settings["rollout.n_samples_per_prompt"], name=f"{ROLLOUT}.n")
    prompts = whole(settings["rollout.batch_size"], name="data.train_batch_size")
    mini = whole(
        taken.number(f"{ACTOR}.ppo_mini_batch_size", default=min(256, prompts)), name=f"{ACTOR}.ppo_mini_batch_size"
    )
    settings["train.batch_size"] = mini * samples
    conversion.differs(
        f"{ACTOR}.ppo_mini_batch_size",
        f"train.batch_size counts responses: {mini} prompts x {samples} = {mini * samples}",
    )
    if (tokens := taken.get(f"{ACTOR}.ppo_max_token_len_per_gpu")) is not None:
        settings["train.max_tokens_per_gpu"] = whole(tokens, name=f"{ACTOR}.ppo_max_token_len_per_gpu")


def _overlong(taken: Taken, conversion: Conversion) -> None:
    names = (
        "reward_model.overlong_buffer",
        "reward_model.reward_kwargs.overlong_buffer_cfg",
        "reward.reward_kwargs.overlong_buffer_cfg",
    )

    def of(key: str) -> Any:
        return taken.get(*(f"{name}.{key}" for name in names))

    enabled, length, factor = is_true(of("enable")), of("len"), of("penalty_factor")
    of("log")
    taken.get("reward_model.reward_kwargs.max_resp_len", "reward.reward_kwargs.max_resp_len")
    if enabled and length:
        conversion.settings["reward.overlong_buffer_len"] = whole(length, name=f"{names[0]}.len")
        conversion.settings["reward.overlong_penalty_factor"] = (
            1.0 if factor is None else number(factor, name=f"{names[0]}.penalty_factor")
        )


def _schedule(taken: Taken, conversion: Conversion) -> None:
    settings, epochs = conversion.settings, taken.get("trainer.total_epochs")
    steps = taken.get("trainer.total_training_steps")
    if steps is not None:
        settings["train.max_steps"] = whole(steps, name="trainer.total_training_steps")
    elif (samples := settings.get("data.max_samples")) is not None and epochs is not None:
        batch = whole(settings["rollout.batch_size"], name="data.train_batch_size")
        rounds = whole(epochs, name="trainer.total_epochs")
        settings["train.max_steps"] = max(1, rounds * samples // batch)
        conversion.differs(
            "trainer.total_epochs",
            f"train.max_steps {settings['train.max_steps']} is {rounds} x {samples} prompts / {batch}, if the files have as many",
        )
    else:
        settings["train.max_steps"] = 400
        conversion.differs(
            "trainer.total_epochs",
            f"{epochs or 'the'} epochs are not known in steps without the number of prompts: train.max_steps 400; set it",
        )
    ratio = taken.number(f"{ACTOR}.optim.lr_warmup_steps_ratio", default=0.0)
    warmup = taken.number(f"{ACTOR}.optim.lr_warmup_steps", default=-1)
    settings["actor.lr_warmup_steps"] = round(warmup if warmup >= 0 else ratio * settings["train.max_steps"])
    kind = str(taken.get(f"{ACTOR}.optim.warmup_style", f"{ACTOR}.optim.lr_scheduler_type") or "constant")
    settings["actor.lr_scheduler"] = "cosine" if kind == "cosine" else "constant_with_warmup"
    for theirs, ours in (("trainer.save_freq", "ckpt.save_steps"), ("trainer.test_freq", "eval.steps")):
        frequency = whole(taken.number(theirs, default=-1), name=theirs)
        settings[ours] = frequency if frequency > 0 else -1


def _logging(taken: Taken, conversion: Conversion) -> None:
    loggers, project = taken.get("trainer.logger"), taken.get("trainer.project_name")
    if isinstance(loggers, str) and loggers.startswith("["):
        loggers = value_of(loggers)
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if logger == "wandb":
            conversion.settings["report.wandb"] = "online"
            conversion.settings |= {"logger.wandb.project": project} if project else {}
        elif logger not in (None, "console", "tensorboard"):
            conversion.lacks(
                "trainer.logger", f"{logger} is not here; report.wandb is, and each run's folder has the figures"
            )


def _placement(taken: Taken, conversion: Conversion) -> None:
    nodes = whole(taken.number("trainer.nnodes", default=1), name="trainer.nnodes")
    per_node = whole(taken.number("trainer.n_gpus_per_node", default=8), name="trainer.n_gpus_per_node")
    parallel = whole(
        taken.number(f"{ROLLOUT}.tensor_model_parallel_size", default=2), name=f"{ROLLOUT}.tensor_model_parallel_size"
    )
    memory = taken.number(f"{ROLLOUT}.gpu_memory_utilization", default=0.9)
    conversion.settings |= {
        "ds.zero_stage": 3,
        "vllm.tensor_parallel_size": parallel,
        "vllm.gpu_memory_utilization": max(memory, 0.8),
    }
    theirs = taken.number("rollout.n_gpus_per_node", default=0) * taken.number("rollout.nnodes", default=1)
    if theirs:  # engines on GPUs of their own, as here
        engines = max(1, int(theirs) // parallel)
        placement = Placement(nodes=nodes, per_node=per_node, engines=engines, shared=False)
        conversion.settings |= placement.settings
    else:
        place(conversion, divided(nodes, per_node, tensor_parallel=parallel), name="trainer.n_gpus_per_node")
    conversion.differs("FSDP or Megatron", "DeepSpeed's ZeRO stage 3 shards the trainer")


def _asynchrony(taken: Taken, conversion: Conversion, module: str) -> None:
    """How old samples may be: one step where the module or its settings let generation run ahead."""
    ahead = taken.below("async_training")
    if ahead or "one_step_off" in module or "fully_async" in module:
        conversion.settings["async.max_staleness"] = 1
        conversion.differs(
            "asynchronous training",
            "async.max_staleness 1 bounds the age of every sample, where verl bounds how many are old; see `dapo-openrlhf plan`",
        )
        return
    conversion.settings["async.max_staleness"] = 0
    conversion.differs(
        "synchronous training",
        "async.max_staleness 0; 1 lets generation and training overlap, and is corrected with --algo.advantage.is_correction tis",
    )
