"""Which settings may change when a run is resumed (standard library and the configuration).

Every setting is in one of two tables. A change of a setting in :data:`CHANGEABLE` takes effect from the first resumed
step on; a change of one in :data:`FIXED` is refused, with the reason and a remedy, before anything starts or is
written.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_openrlhf.algorithm.choices import ESTIMATORS
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import load_config
from dapo_openrlhf.config.settings import Config, settings_of
from dapo_openrlhf.config.training import AdamSection, LoraSection
from dapo_openrlhf.config.typed import typed
from dapo_openrlhf.pipeline.checkpoint import SETTINGS_FILE


def _never(earlier: Config, now: Config) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Why a setting cannot change within a run, and what to do instead."""

    reason: str
    remedy: str = ""
    """What to do instead; empty: start a new run from the checkpoint's model, for which the command is shown."""
    unless: str = ""
    """The changes that are allowed nevertheless, in words; empty: none."""
    allowed: Callable[[Config, Config], bool] = _never
    """Whether the change from the earlier configuration to the new one is allowed nevertheless."""


def _same_ranks(earlier: Config, now: Config) -> bool:
    return earlier.trainer_ranks == now.trainer_ranks


def _needs_no_new_critic(earlier: Config, now: Config) -> bool:
    def critic(config: Config) -> bool:
        return ESTIMATORS[config.algo.advantage.estimator].critic

    return critic(earlier) or not critic(now)


_FOLDER = Fixed(
    reason="a resumed run goes on in its own folder", remedy="leave it out, and move the folder afterwards if need be"
)
_RANKS = Fixed(
    reason="each trainer rank has saved its own part of the optimizer's state, which DeepSpeed loads into as many ranks only",
    unless="the number of trainer ranks, actor.num_nodes x actor.num_gpus_per_node, stays",
    allowed=_same_ranks,
)
_OPTIMIZER = "the optimizer's state is laid out otherwise, and DeepSpeed cannot load one as the other"
_ADAPTERS = Fixed(reason="the checkpoint holds the adapters, and the optimizer's state, of the earlier setting")

_PROMPTS = Fixed(
    reason="the run's place in the order of its prompts is a place in that file",
    unless="the other file holds the same prompts in the same order, which is checked when it is read",
    allowed=lambda earlier, now: True,
)

FIXED: Mapping[str, Fixed] = {
    "preset": Fixed(
        reason="a run's config.yaml holds every setting already, so another preset would change nothing",
        remedy="change the settings themselves",
    ),
    "algo.advantage.is_correction": Fixed(
        reason="a run's config.yaml holds every setting already, so a name for several would change nothing",
        remedy="change algo.advantage.is_correction_level and the settings after it",
    ),
    "device": Fixed(reason="the optimizer is another one on the other kind of machine"),
    "run.name": _FOLDER,
    "run.dir": _FOLDER,
    "actor.model_name_or_path": Fixed(
        reason="the weights come from the checkpoint, and a KL is measured to the model that the run began with",
        remedy="leave it out, or start a new run from the other model",
    ),
    "actor.num_nodes": _RANKS,
    "actor.num_gpus_per_node": _RANKS,
    "critic.model_name_or_path": Fixed(
        reason="the critic comes from the checkpoint", remedy="leave it out, or start a new run from the other model"
    ),
    **dict.fromkeys(
        ("ds.zero_stage", "ds.param_dtype", "ds.adam_offload", "ds.grad_accum_dtype"), Fixed(reason=_OPTIMIZER)
    ),
    **{f"ds.lora.{name}": _ADAPTERS for name in LoraSection.model_fields},
    "train.seed": Fixed(
        reason="the order of the prompts follows from it; in another order some of this pass would come twice and others "
        "not at all"
    ),
    "algo.advantage.estimator": Fixed(
        reason="the checkpoint holds no critic",
        unless="the new estimator needs no critic, or the run has one already",
        allowed=_needs_no_new_critic,
    ),
    "train.enable_ema": Fixed(
        reason="the checkpoint holds no average of the weights",
        unless="it is switched off, which ends the average",
        allowed=lambda earlier, now: not now.train.enable_ema,
    ),
    "data.prompt_dataset": _PROMPTS,
    "data.prompt_split": _PROMPTS,
    "data.prompt_probs": Fixed(
        reason="each file is drawn from on its own with shares, and from all together without",
        unless="there were shares before, and are",
        allowed=lambda earlier, now: None not in (earlier.data.prompt_probs, now.data.prompt_probs),
    ),
    "data.max_samples": Fixed(reason="another number of rows is another set of prompts"),
    "data.curriculum": Fixed(reason="the run's place in the order of its prompts is a place in the other order"),
    "data.input_key": Fixed(reason="another column holds other prompts, in which the run's place has no meaning"),
    "data.input_template": Fixed(reason="the same rows would be other prompts than those the run has begun with"),
}
"""Settings that a resumed run keeps."""

_AT_ONCE = "in force from the first resumed step"
_RATE = "the optimizer's parameter groups hold it from the first resumed step; moments stay"
_SCHEDULE = "the schedule is worked out anew and entered where the rollout steps done stand in it"
_GROUPS = "groups begun from then on"
_WAITS = "waits from then on"
_EVALUATION = "evaluations from then on"
_REPORTED = "what is reported from the resumed run's start"
_OF_LOSS = (
    "eps_clip_low_high", "dual_clip", "policy_loss_type", "dppo_delta", "sapo_tau", "entropy_coef", "aux_loss_coef", "loss_agg_mode",
)  # fmt: skip
_OF_ENGINES = (
    "num_engines", "tensor_parallel_size", "gpu_memory_utilization", "kv_cache_memory_bytes", "enable_prefix_caching",
    "enforce_eager", "max_num_seqs", "max_num_batched_tokens",
)  # fmt: skip

CHANGEABLE: Mapping[str, str] = {
    **{f"actor.{name}": _AT_ONCE for name in _OF_LOSS},
    **{f"actor.adam.{name}": _RATE for name in AdamSection.model_fields},
    "actor.lr_scheduler": _SCHEDULE,
    "actor.lr_warmup_steps": _SCHEDULE,
    "actor.max_norm": _AT_ONCE,
    "actor.gradient_checkpointing_enable": _AT_ONCE,
    "actor.trust_remote_code": "models are loaded anew",
    **{f"critic.adam.{name}": _RATE for name in AdamSection.model_fields},
    "critic.value_clip": _AT_ONCE,
    "critic.save_value_network": "models saved from then on",
    "ds.attn_implementation": _AT_ONCE,
    "ds.use_liger_kernel": "models are loaded anew",
    **{f"vllm.{name}": "engines are started anew" for name in _OF_ENGINES},
    "vllm.max_restarts": "restarts are counted anew",
    "vllm.health_timeout": _WAITS,
    "vllm.step_timeout": _WAITS,
    "vllm.sync_backend": "publications from then on",
    "rollout.batch_size": f"{_GROUPS}; {_SCHEDULE}",
    "rollout.n_samples_per_prompt": f"{_GROUPS}; {_SCHEDULE}",
    "rollout.max_new_tokens": _GROUPS,
    "rollout.max_turns": _GROUPS,
    "rollout.max_action_tokens": _GROUPS,
    "rollout.temperature": _GROUPS,
    "rollout.top_p": _GROUPS,
    "rollout.top_k": _GROUPS,
    "rollout.min_p": _GROUPS,
    "train.agent_func_path": _GROUPS,
    "train.ema_beta": _AT_ONCE,
    "train.max_bad_updates": _AT_ONCE,
    "train.max_rollout_kl": _AT_ONCE,
    "train.grace_seconds": _AT_ONCE,
    "train.max_restarts": "restarts are counted anew",
    "train.check_agreement": "the check at the resumed run's start",
    "train.full_determinism_enable": _AT_ONCE,
    "train.batch_size": f"{_AT_ONCE}; {_SCHEDULE}",
    "train.max_tokens_per_gpu": _AT_ONCE,
    "train.max_epochs": f"{_AT_ONCE}; {_SCHEDULE}",
    "train.max_steps": f"more than the rollout steps done; {_SCHEDULE}",
    "train.max_hours": "hours are counted anew",
    "train.partial_rollout_enable": "publications from then on",
    "train.colocate_all": "actors are placed anew",
    "async.max_staleness": _GROUPS,
    "async.at_deadline": _GROUPS,
    "async.over_sampling": _GROUPS,
    "async.kv_cache": "publications from then on",
    "async.old_logprobs": _AT_ONCE,
    "async.scale_lr": _RATE,
    "async.generate_timeout": _WAITS,
    "async.reward_timeout": _WAITS,
    "async.train_timeout": _WAITS,
    "async.publish_timeout": _WAITS,
    "async.start_timeout": _WAITS,
    "algo.advantage.gamma": _AT_ONCE,
    "algo.advantage.lambd": _AT_ONCE,
    "algo.advantage.no_std_norm": _AT_ONCE,
    "algo.advantage.is_correction_level": _AT_ONCE,
    "algo.advantage.is_correction_mode": _AT_ONCE,
    "algo.advantage.is_correction_threshold": _AT_ONCE,
    "algo.advantage.is_correction_gating": _AT_ONCE,
    "algo.advantage.is_correction_cap": _AT_ONCE,
    "algo.kl.init_coef": f"{_AT_ONCE}; the reference is the model that the run began with, also where it had none",
    "algo.kl.use_loss": _AT_ONCE,
    "algo.kl.estimator": _AT_ONCE,
    "algo.kl.unbiased_gradient": _AT_ONCE,
    "algo.dynamic_filtering_enable": _GROUPS,
    "algo.dynamic_filtering_range": _GROUPS,
    "algo.max_filtered_batches": _GROUPS,
    "reward.remote_url": _GROUPS,
    "reward.weights": _GROUPS,
    "reward.answer_form": _GROUPS,
    "reward.correct_from": _GROUPS,
    "reward.batch_size": _GROUPS,
    "reward.server_timeout": _WAITS,
    "reward.num_workers": "workers are started anew",
    "environment.timeout": _WAITS,
    "environment.memory": "environment processes are started anew",
    "environment.workers": "environment processes are started anew",
    "reward.timeout": _WAITS,
    "reward.memory": "workers are started anew",
    "reward.max_attempts": "attempts are counted anew",
    "reward.overlong_buffer_len": _GROUPS,
    "reward.overlong_penalty_factor": _GROUPS,
    "reward.stop_properly_penalty_coef": _GROUPS,
    "reward.clip_range": _AT_ONCE,
    "reward.overlong_filtering_enable": _AT_ONCE,
    "data.label_key": _GROUPS,
    "data.apply_chat_template": _GROUPS,
    "data.chat_template_kwargs": _GROUPS,
    "data.system_prompt": _GROUPS,
    "data.on_bad_row": "rows read from then on; a row more or less is another set of prompts, which is refused",
    "data.max_len": _GROUPS,
    **dict.fromkeys(
        ("eval.dataset", "eval.split", "eval.sets", "eval.max_samples", "eval.steps", "eval.target"), _EVALUATION
    ),
    "eval.patience": f"{_EVALUATION}, counted anew",
    **{f"eval.{name}": _EVALUATION for name in ("n_samples_per_prompt", "temperature", "top_p", "max_new_tokens")},
    "ckpt.save_steps": "checkpoints from then on",
    "ckpt.max_num": "checkpoints from then on; older ones beyond it are removed at the next",
    "report.wandb": _REPORTED,
    "report.prometheus": _REPORTED,
    "report.samples": _REPORTED,
    "logger.wandb.project": _REPORTED,
    "logger.wandb.org": _REPORTED,
    "logger.wandb.group": _REPORTED,
    "logger.wandb.run_name": _REPORTED,
    "ckpt.best_metric_key": "which checkpoint is kept as the best, from the next one on, among all that are left",
}
"""Settings that a resumed run may change, with what the new value governs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting whose value in the resumed run differs from that at the checkpoint."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} {typed(self.before)} -> {typed(self.after)}"


def check_resume(config: Config, *, run: Path, checkpoint: Path) -> list[Change]:
    """Settings in which ``config`` differs from those that the checkpoint was made with.

    Raises :class:`ConfigError` if one of them is fixed; then nothing has been started or written. The earlier settings
    are read from the checkpoint, even if the run's ``config.yaml`` has changed since then.
    """
    lies_there = checkpoint / SETTINGS_FILE
    earlier = load_config(lies_there if lies_there.is_file() else run / "config.yaml")
    changes = list(differences(earlier, config))
    refused = [change for change in changes if not _obeyed(change, earlier, config)]
    if refused:
        lines = [f"--resume {run} cannot go on with other values of these settings:", *map(_refusal, refused)]
        if any(not FIXED[change.name].remedy for change in refused):
            command = new_run(changes, run=run, checkpoint=checkpoint)
            lines.append(
                f"  A new run from the model of the checkpoint, with a new optimizer and with the prompts from their "
                f"beginning:\n    {command}"
            )
        raise ConfigError("\n".join(lines))
    return changes


def differences(earlier: Config, now: Config) -> Iterator[Change]:
    """Yield every setting in which two configurations differ."""
    before, after = earlier.model_dump(mode="json", by_alias=True), now.model_dump(mode="json", by_alias=True)
    for name, _ in settings_of():
        change = Change(name=name, before=_value(before, name), after=_value(after, name))
        if change.before != change.after:
            yield change


def new_run(changes: Iterable[Change], *, run: Path, checkpoint: Path) -> str:
    """The command that starts a run from a checkpoint's model with the changed settings. Its folder follows from
    ``run.dir`` and ``run.name``; existing runs are not touched."""
    words = ["dapo-openrlhf", "train", "--config", str(run / "config.yaml")]
    words += ["--actor.model_name_or_path", str(checkpoint)]
    for change in changes:
        if not (change.name in FIXED and FIXED[change.name].remedy):
            value = change.after if isinstance(change.after, list) else [change.after]
            words += [f"--{change.name}", *map(typed, value)]
    return shlex.join(words)


def resume_table() -> str:
    """Both tables as Markdown, for ``docs/resume.md``."""
    fixed = [
        f"| `{name}` | {entry.reason} | {entry.unless or 'never'} | {entry.remedy or 'a new run from the checkpoint'} |"
        for name, entry in FIXED.items()
    ]
    changeable = [f"| `{name}` | {what} |" for name, what in CHANGEABLE.items()]
    return "\n".join(
        [
            "| refused | because | obeyed if | instead |",
            "|---|---|---|---|",
            *fixed,
            "",
            "| obeyed | what the new value governs |",
            "|---|---|",
            *changeable,
            "",
        ]
    )


def _obeyed(change: Change, earlier: Config, now: Config) -> bool:
    return change.name in CHANGEABLE or FIXED[change.name].allowed(earlier, now)


def _refusal(change: Change) -> str:
    entry = FIXED[change.name]
    remedy = f"; {entry.remedy}" if entry.remedy else ""
    return f"  {change}: {entry.reason}{remedy}"


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = value[part]
    return value


if __name__ == "__main__":
    print(resume_table(), end="")
