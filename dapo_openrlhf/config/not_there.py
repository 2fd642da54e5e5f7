"""Settings that cannot, or cannot always, be said in OpenRLHF's options (standard library).

The counterpart of :mod:`dapo_openrlhf.config.foreign`, for OpenRLHF 0.11.2's ``train_ppo_ray.py``. A test holds that every
setting which is none of its options stands in :data:`NOT_THERE` or in :data:`HOW`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Only:
    """The values of a setting with which OpenRLHF does the same."""

    values: Collection[object]
    reason: str
    """Why it does otherwise with others, and what to set."""


_LORA = "OpenRLHF sends tensors to the engines by names of adapters, which vLLM does not load; use 0"
_LOSS = "OpenRLHF has the losses ppo and gspo; use one of them"
_WHOLE = "OpenRLHF's trainer takes log-probs over all tokens, not over those that were sampled from"
_AVERAGES = "OpenRLHF averages by token-mean or seq-mean-token-mean; use one of them"

NOT_THERE: Mapping[str, Only] = {
    "algo.advantage.is_correction_cap": Only((None,), "OpenRLHF truncates no weight that mask keeps; use null"),
    "async.at_deadline": Only(("wait",), "OpenRLHF has no deadlines, and waits; use wait"),
    "async.old_logprobs": Only(("recompute",), "OpenRLHF computes them with the trainer's weights; use recompute"),
    "async.scale_lr": Only((False,), "the learning rate would follow each arm's K; use false, and set actor.adam.lr"),
    "data.curriculum": Only((False,), "OpenRLHF draws all prompts alike; use false"),
    "reward.overlong_filtering_enable": Only((False,), "OpenRLHF trains truncated responses; use false"),
    "rollout.min_p": Only((0.0,), f"{_WHOLE}; use 0"),
    "rollout.top_k": Only((0, -1), f"{_WHOLE}; use 0"),
    "train.agent_func_path": Only(
        (None,),
        "OpenRLHF counts what an environment says among a response's tokens, and does not bound turns; "
        "`bench --preset cpu-turns` compares such work",
    ),
}
"""Settings that OpenRLHF has no option for, with the values for which it needs none; and environments."""

FEWER: Mapping[str, Only] = {
    "actor.loss_agg_mode": Only(("token-mean", "seq-mean-token-mean"), _AVERAGES),
    "actor.lr_scheduler": Only(
        ("constant_with_warmup",),
        "OpenRLHF's schedule ends with the prompts, of which the filter takes an unknown number; use constant_with_warmup",
    ),
    "actor.policy_loss_type": Only(("ppo", "gspo"), _LOSS),
    "algo.advantage.is_correction_gating": Only(
        ("ratio", "binary_kl", "tv"), "OpenRLHF bounds no second moment; use ratio, binary_kl or tv"
    ),
    "data.prompt_probs": Only((None,), "OpenRLHF mixes sets once, by its own rule; use null, and one file"),
    "ds.lora.rank": Only((0,), _LORA),
    "rollout.top_p": Only((1.0,), f"{_WHOLE}; use 1"),
    "train.full_determinism_enable": Only((False,), "OpenRLHF has no seeds of single responses; use false"),
}
"""Options of OpenRLHF that take fewer values, or mean the same with these only."""

ON_CUDA: Mapping[str, Only] = {
    "ds.attn_implementation": Only(
        ("flash_attention_2",), "OpenRLHF packs sequences with flash attention only; use flash_attention_2"
    ),
    "ds.param_dtype": Only(("bf16",), "OpenRLHF's engines compute in bf16; use bf16"),
    "vllm.kv_cache_memory_bytes": Only((None,), "OpenRLHF sizes it by vllm.gpu_memory_utilization; use null"),
    "vllm.max_num_batched_tokens": Only((None,), "OpenRLHF leaves it to vLLM; use null"),
    "vllm.max_num_seqs": Only((None,), "OpenRLHF leaves it to vLLM; use null"),
}
"""What its files have fixed, and ``bench`` can set from outside on a CPU only."""

ON_CPU: Mapping[str, Only] = {
    "vllm.tensor_parallel_size": Only(
        (1,), "OpenRLHF's engines are not put together from several processes on a CPU; use 1"
    ),
}
"""What ``bench`` does not bring to a machine without GPUs."""

HOW = frozenset(
    {
        "actor.dppo_delta", "actor.lr_warmup_steps", "actor.sapo_tau", "actor.trust_remote_code", "algo.advantage.is_correction", "algo.max_filtered_batches", "async.generate_timeout",
        "async.kv_cache", "async.max_staleness", "async.over_sampling", "async.publish_timeout", "async.reward_timeout",
        "async.start_timeout", "async.train_timeout", "data.chat_template_kwargs", "data.on_bad_row", "data.system_prompt", "device",
        "environment.memory", "environment.timeout", "environment.workers", "eval.max_new_tokens", "eval.max_samples",
        "eval.patience", "eval.sets", "eval.target", "eval.top_p", "preset", "report.prometheus", "report.samples", "report.wandb",
        "reward.answer_form", "reward.batch_size", "reward.correct_from", "reward.max_attempts", "reward.memory",
        "reward.num_workers", "reward.server_timeout", "reward.timeout", "reward.weights", "rollout.max_action_tokens",
        "rollout.max_turns", "run.dir", "run.name", "train.check_agreement", "train.grace_seconds", "train.max_bad_updates",
        "train.max_hours", "train.max_restarts", "train.max_rollout_kl", "train.max_steps", "vllm.health_timeout",
        "vllm.kv_cache_memory_bytes", "vllm.max_num_batched_tokens", "vllm.max_num_seqs", "vllm.max_restarts", "vllm.step_timeout",
    }
)  # fmt: skip
"""Settings without an option that change nothing there, that other settings imply, or that ``bench`` says otherwise: prompts
as the rendered text, rewards by a file that judges as this project does, the length of a run by ending it."""
