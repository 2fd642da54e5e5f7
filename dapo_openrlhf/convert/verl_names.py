"""Names and defaults of verl's settings, and what they are called here (standard library)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
"""Sections of verl's settings."""

ONE_TO_ONE: Mapping[str, str] = {
    f"{MODEL}.path": "actor.model_name_or_path",
    f"{MODEL}.trust_remote_code": "actor.trust_remote_code",
    f"{MODEL}.enable_gradient_checkpointing": "actor.gradient_checkpointing_enable",
    f"{MODEL}.use_liger": "ds.use_liger_kernel",
    f"{ACTOR}.optim.lr": "actor.adam.lr",
    f"{ACTOR}.optim.betas": "actor.adam.betas",
    f"{ACTOR}.optim.clip_grad": "actor.max_norm",
    f"{ACTOR}.optim.weight_decay": "actor.adam.weight_decay",
    f"{ACTOR}.grad_clip": "actor.max_norm",
    f"{ACTOR}.ppo_epochs": "train.max_epochs",
    f"{ACTOR}.entropy_coeff": "actor.entropy_coef",
    f"{ACTOR}.fsdp_config.optimizer_offload": "ds.adam_offload",
    f"{ROLLOUT}.n": "rollout.n_samples_per_prompt",
    f"{ROLLOUT}.temperature": "rollout.temperature",
    f"{ROLLOUT}.top_p": "rollout.top_p",
    f"{ROLLOUT}.top_k": "rollout.top_k",
    f"{ROLLOUT}.enforce_eager": "vllm.enforce_eager",
    f"{ROLLOUT}.enable_prefix_caching": "vllm.enable_prefix_caching",
    f"{ROLLOUT}.max_num_seqs": "vllm.max_num_seqs",
    f"{ROLLOUT}.max_num_batched_tokens": "vllm.max_num_batched_tokens",
    f"{ROLLOUT}.val_kwargs.n": "eval.n_samples_per_prompt",
    f"{ROLLOUT}.val_kwargs.temperature": "eval.temperature",
    f"{ROLLOUT}.val_kwargs.top_p": "eval.top_p",
    "data.train_batch_size": "rollout.batch_size",
    "data.max_response_length": "rollout.max_new_tokens",
    "data.prompt_key": "data.input_key",
    "data.seed": "train.seed",
    "algorithm.filter_groups.enable": "algo.dynamic_filtering_enable",
    "trainer.experiment_name": "run.name",
    "trainer.max_actor_ckpt_to_keep": "ckpt.max_num",
    "critic.model.path": "critic.model_name_or_path",
    "critic.cliprange_value": "critic.value_clip",
    "critic.optim.lr": "critic.adam.lr",
    "critic.optim.betas": "critic.adam.betas",
    "critic.optim.weight_decay": "critic.adam.weight_decay",
}
"""Names of the same thing in both."""

DEFAULTS: Mapping[str, Any] = {
    "actor.adam.betas": (0.9, 0.999),
    "actor.adam.lr": 1e-6,
    "actor.adam.weight_decay": 0.01,
    "actor.max_norm": 1.0,
    "algo.advantage.is_correction_level": "off",
    "algo.dynamic_filtering_enable": False,
    "data.apply_chat_template": True,
    "data.input_key": "prompt",
    "data.label_key": "reward_model.ground_truth",
    "eval.n_samples_per_prompt": 1,
    "eval.temperature": 0.0,
    "reward.overlong_filtering_enable": False,
    "reward.overlong_buffer_len": None,
    "rollout.batch_size": 1024,
    "rollout.max_new_tokens": 512,
    "rollout.n_samples_per_prompt": 1,
}
"""verl's defaults that are others than this project's and change what is trained."""

CRITIC_DEFAULTS: Mapping[str, Any] = {"critic.adam.lr": 1e-5, "critic.adam.weight_decay": 0.01}
"""The same of the critic, where there is one."""

ESTIMATORS = {
    "grpo": "group_norm", "gae": "gae", "rloo": "rloo", "reinforce_plus_plus": "reinforce",
    "reinforce_plus_plus_baseline": "reinforce_baseline",
}  # fmt: skip
LOSSES = {
    "vanilla": "ppo", "ppo": "ppo", "gspo": "gspo", "cispo": "cispo", "sapo": "sapo", "dppo_tv": "dppo_tv", "geo_mean": "gmpo",
}  # fmt: skip
AGGREGATIONS = {
    "token-mean": "token-mean", "seq-mean-token-mean": "seq-mean-token-mean", "seq-mean-token-sum-norm": "seq-mean-token-sum-norm",
}  # fmt: skip
KL_TYPES = {"kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}

HARMLESS = (
    "trainer.val_before_train", "trainer.default_local_dir", "trainer.resume_mode",
    "trainer.balance_batch", "trainer.critic_warmup", "trainer.log_val_generations", "data.gen_batch_size", 
    "data.filter_overlong_prompts_workers", "data.return_raw_chat", "data.return_raw_input_ids", "data.return_full_prompt",
    "data.shuffle", "data.validation_shuffle", "data.val_batch_size", "data.dataloader_num_workers", "data.image_key",
    "data.video_key", "data.reward_fn_key", "reward_model.reward_manager", "reward_model.overlong_buffer.log", "actor_rollout_ref.hybrid_engine",
    f"{MODEL}.use_remove_padding", "actor_rollout_ref.nccl_timeout",
    "actor_rollout_ref.ref", f"{ACTOR}.use_dynamic_bsz", f"{ACTOR}.ppo_micro_batch_size", f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    f"{ACTOR}.ulysses_sequence_parallel_size", f"{ACTOR}.fsdp_config", f"{ACTOR}.strategy", f"{ACTOR}.shuffle",
    f"{ACTOR}.use_torch_compile", f"{ROLLOUT}.name", f"{ROLLOUT}.mode", f"{ROLLOUT}.dtype", f"{ROLLOUT}.free_cache_engine",
    f"{ROLLOUT}.enable_chunked_prefill", f"{ROLLOUT}.load_format",
    f"{ROLLOUT}.log_prob_micro_batch_size", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_use_dynamic_bsz",
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu", f"{ROLLOUT}.calculate_log_probs",
    f"{ROLLOUT}.do_sample", f"{ROLLOUT}.disable_log_stats", "hydra", "defaults", "ray_init",
    "ray_kwargs", f"{MODEL}.fused_kernel_options", f"{ACTOR}.policy_loss", f"{ACTOR}.checkpoint", f"{ACTOR}.profiler",
    f"{ACTOR}.optim.num_cycles", f"{ACTOR}.optim.total_training_steps", f"{ROLLOUT}.prompt_length", f"{ROLLOUT}.response_length",
    f"{ROLLOUT}.agent", f"{ROLLOUT}.update_weights_bucket_megabytes", "algorithm.kl_ctrl.horizon", "algorithm.kl_ctrl.target_kl",
    "algorithm.pf_ppo", "reward_model.strategy", "trainer.device", "trainer.ray_wait_register_center_timeout",
)  # fmt: skip
"""Names, or beginnings of names, that say how and not what."""

LACKING: Mapping[str, str] = {
    f"{MODEL}.lora_adapter_path": "training begins with a whole model; add the adapter to its weights with merge_and_unload of peft",
    f"{ACTOR}.optim.min_lr_ratio": "cosine falls to 0",
    "data.custom_cls": "prompts are rows of files; write them as one",
    "data.sampler": "prompts come in turn; data.curriculum draws them by their difficulty",
    "trainer.resume_from_path": "going on is a command, `train --resume RUN`",
    "trainer.rollout_data_dir": "each run's folder holds texts of a few responses a step, see report.samples",
    "trainer.validation_data_dir": "each run's folder holds the responses of its evaluations",
    "trainer.val_only": "`dapo-openrlhf eval` measures a model without training it",
}
"""Names, or beginnings of names, that have no counterpart, with the way to get there."""
