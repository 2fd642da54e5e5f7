"""verl's configurations of GRPO and DAPO as settings (standard library and the configuration)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dapo_openrlhf.config.yaml_text import value_of
from dapo_openrlhf.convert.conversion import (
    Conversion,
    NotConvertible,
    divided,
    is_true,
    number,
    place,
    whole,
    with_names,
)
from dapo_openrlhf.convert.verl_names import (
    ACTOR,
    AGGREGATIONS,
    CRITIC_DEFAULTS,
    DEFAULTS,
    ESTIMATORS,
    HARMLESS,
    KL_TYPES,
    LOSSES,
    ONE_TO_ONE,
    ROLLOUT,
)


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


def convert_verl(given: Mapping[str, Any]) -> Conversion:
    """Translate verl's settings by dotted name.

    Raises ``NotConvertible`` if the model or the prompts are missing, or a number is not written out.
    """
    conversion = Conversion()
    conversion.settings |= DEFAULTS
    taken = Taken(given)
    for name, ours in ONE_TO_ONE.items():
        if (value := taken.get(name)) is not None:
            conversion.settings[ours] = value
    for part in (_data, _algorithm, _loss, _batches, _overlong, _schedule, _placement, _correction):
        part(taken, conversion)
    for name in taken.left():
        if given[name] not in (None, False, "") and not any(
            name == known or name.startswith(f"{known}.") for known in HARMLESS
        ):
            conversion.lacks(name, f"{given[name]!r} has no counterpart here")
    for name, theirs in (
        ("actor.model_name_or_path", "actor_rollout_ref.model.path"),
        ("data.prompt_dataset", "data.train_files"),
    ):
        if not conversion.settings.get(name):
            raise NotConvertible(f"{theirs} is not given, without which there is nothing to train")
    return conversion


class Taken:
    """Settings of verl, of which it is known which have been looked at."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._taken: set[str] = set()

    def get(self, *names: str) -> Any:
        """The first of these that is set and not null; all of them count as looked at."""
        self._taken.update(names)
        return next((self._given[name] for name in names if self._given.get(name) is not None), None)

    def number(self, *names: str, default: float) -> float:
        """The same as a number."""
        value = self.get(*names)
        return default if value is None else number(value, name=names[0])

    def left(self) -> list[str]:
        """The names that nobody has looked at."""
        return [name for name in self._given if name not in self._taken]


def _data(taken: Taken, conversion: Conversion) -> None:
    for theirs, ours in (("data.train_files", "data.prompt_dataset"), ("data.val_files", "eval.dataset")):
        files = taken.get(theirs)
        if isinstance(files, str) and files.startswith("["):
            files = value_of(files)
        several = [str(file) for file in (files if isinstance(files, list) else [files]) if file]
        several = with_names(several) if ours == "eval.dataset" else several
        if several:
            conversion.settings[ours] = several if len(several) > 1 else several[0]
    for theirs, ours in (("data.train_max_samples", "data.max_samples"), ("data.val_max_samples", "eval.max_samples")):
        if (most := whole(taken.number(theirs, default=-1), name=theirs)) > 0:
            conversion.settings[ours] = most
    do_sample = taken.get(f"{ROLLOUT}.val_kwargs.do_sample")
    if do_sample is not None and not is_true(do_sample):
        conversion.settings["eval.temperature"] = 0.0
    prompt = whole(taken.number("data.max_prompt_length", default=512), name="data.max_prompt_length")
    conversion.settings["data.max_len"] = prompt + whole(
        conversion.settings["rollout.max_new_tokens"], name="data.max_response_length"
    )
    if taken.get("custom_reward_function.path", "reward.custom_reward_function.path") is not None:
        taken.get("custom_reward_function.name", "reward.custom_reward_function.name")
        conversion.lacks(
            "custom_reward_function.path",
            "verl calls compute_score(data_source, solution_str, ground_truth); write reward_func(queries, prompts, labels) in "
            "a file for reward.remote_url. Until then the rule judges",
        )
    else:
        conversion.differs(
            "reward",
            "answers are compared by this project's rule; `dapo-openrlhf verify` shows its verdicts on your data",
        )


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
    if estimator == "gae":
        settings |= {"algo.advantage.gamma": gamma or 1.0, "algo.advantage.lambd": lam or 1.0}
        settings |= {name: value for name, value in CRITIC_DEFAULTS.items() if name not in settings}
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
    place(conversion, divided(nodes, per_node, tensor_parallel=parallel), name="trainer.n_gpus_per_node")
    conversion.settings["async.max_staleness"] = 0
    conversion.differs(
        "synchronous training",
        "async.max_staleness 0; 1 lets generation and training overlap, and is corrected with --algo.advantage.is_correction tis",
    )
    conversion.differs("FSDP or Megatron", "DeepSpeed's ZeRO stage 3 shards the trainer")


def _correction(taken: Taken, conversion: Conversion) -> None:
    """Weights are applied where they are named, or their truncation alone is given, as before there were names."""
    kind = taken.get("algorithm.rollout_correction.rollout_is", "algorithm.rollout_is")
    level = taken.get("algorithm.rollout_is_level")
    bounds = ("algorithm.rollout_correction.rollout_is_threshold", "algorithm.rollout_is_threshold")
    threshold = taken.number(*bounds, default=2.0)
    cap = taken.number(f"{ACTOR}.tis_imp_ratio_cap", default=-1)
    if str(kind).lower() in ("none", "null", "false"):
        if cap <= 0:
            return
        kind, threshold = "token", cap
    kind = (level or "token") if is_true(kind) else kind
    if str(kind) != "token":
        conversion.differs("algorithm.rollout_is", f"{kind} weights are not here; each token's is truncated")
    conversion.settings |= {
        "algo.advantage.is_correction_level": "token",
        "algo.advantage.is_correction_mode": "clip",
        "algo.advantage.is_correction_threshold": (0.0, threshold),
    }
