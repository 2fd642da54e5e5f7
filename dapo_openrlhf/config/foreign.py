"""OpenRLHF's options that are no settings here: why, and how to get there (standard library).

The names are those of OpenRLHF 0.11.2's ``train_ppo_ray.py``. A test holds that every one of its options is a setting or
stands here.
"""

from __future__ import annotations

from collections.abc import Mapping

_ADAM_ONLY = "AdamW is the only optimizer here; leave it out, and set actor.adam.* and critic.adam.*"
_ACTORS = "the critic has the actor's schedule and bound; leave it out"
_PLACED = "reference and critic lie on the trainer's ranks; leave it out, and count ranks by actor.num_nodes and actor.num_gpus_per_node"
_REWARD_MODEL = "reward models are not placed by a run; serve one with openrlhf.cli.serve_rm and name its address in reward.remote_url"
_TOKENS = "micro-batches are filled by tokens; leave it out, and set train.max_tokens_per_gpu"
_PACKED = "sequences are always packed; leave it out"
_IMAGES = "models with images are not trained here; leave it out for text"
_RING = "a sequence lies on one rank; leave it out, and set actor.gradient_checkpointing_enable for long ones"
_SHARED = "engines and trainer that share a GPU both stay in memory; leave it out, and set vllm.gpu_memory_utilization"
_CHECKPOINTS = (
    "a run's checkpoints lie in its folder with model and optimizer; leave it out, and set run.dir and run.name"
)
_RESUME = "going on is a command, `train --resume RUN`, or `--resume auto`; leave it out"

NOT_HERE: Mapping[str, str] = {
    "actor.eps_clip": "one bound for both sides; use actor.eps_clip_low_high with the value twice",
    "actor.freeze_visual_encoder": _IMAGES,
    "actor.gradient_checkpointing_reentrant": "gradient checkpointing is never reentrant here; leave it out",
    "actor.lr_warmup_ratio": "warm-up is given in rollout steps; use actor.lr_warmup_steps, the ratio times train.max_steps",
    "actor.min_lr_ratio": "cosine falls to 0; leave it out, or use actor.lr_scheduler constant_with_warmup",
    "actor.muon.lr": _ADAM_ONLY,
    "actor.muon.momentum": _ADAM_ONLY,
    "actor.muon.nesterov": _ADAM_ONLY,
    "actor.muon.no_nesterov": _ADAM_ONLY,
    "actor.muon.ns_steps": _ADAM_ONLY,
    "actor.optim": _ADAM_ONLY,
    "algo.kl.horizon": "the coefficient of the KL is fixed; leave it out, and set algo.kl.init_coef",
    "algo.kl.target": "the coefficient of the KL is fixed; leave it out, and set algo.kl.init_coef",
    "ckpt.disable_ds": _CHECKPOINTS,
    "ckpt.load_enable": _RESUME,
    "ckpt.max_mem": "the number of checkpoints is bounded, not their size; use ckpt.max_num",
    "ckpt.output_dir": _CHECKPOINTS,
    "ckpt.path": _CHECKPOINTS,
    "ckpt.save_hf": "the final model is always saved in Hugging Face's format; leave it out",
    "critic.freezing_steps": "the policy trains from the first step on, beside a critic too; leave it out",
    "critic.lr_scheduler": _ACTORS,
    "critic.lr_warmup_ratio": _ACTORS,
    "critic.max_norm": _ACTORS,
    "critic.min_lr_ratio": _ACTORS,
    "critic.muon.lr": _ADAM_ONLY,
    "critic.muon.momentum": _ADAM_ONLY,
    "critic.muon.nesterov": _ADAM_ONLY,
    "critic.muon.no_nesterov": _ADAM_ONLY,
    "critic.muon.ns_steps": _ADAM_ONLY,
    "critic.num_gpus_per_node": _PLACED,
    "critic.num_nodes": _PLACED,
    "critic.optim": _ADAM_ONLY,
    "data.dataloader_num_workers": "prompts are read once, before the run; leave it out",
    "data.disable_fast_tokenizer": "the tokenizer is the one that the model's files name; leave it out",
    "data.image_key": _IMAGES,
    "data.max_images_per_prompt": _IMAGES,
    "ds.deepcompile": "layers run as they are written; leave it out",
    "ds.enable_sleep": _SHARED,
    "ds.experts_implementation": "transformers chooses how experts are computed; leave it out",
    "ds.load_in_4bit": "weights are not quantised; leave it out, and use ds.zero_stage 3 for memory",
    "ds.overlap_comm": "DeepSpeed's default is taken; leave it out",
    "ds.packing_samples": _PACKED,
    "ds.ring_attn_head_stride": _RING,
    "ds.ring_attn_size": _RING,
    "ds.tensor_parallel_size": "the trainer shards by ZeRO only; leave it out, and use ds.zero_stage 3",
    "ds.use_universal_ckpt": "a checkpoint is for as many ranks as wrote it; leave it out, or start from its model",
    "ds.value_head_prefix": "the critic's value head has OpenRLHF's default name; leave it out",
    "ds.zpg": "parameters are sharded over all ranks; leave it out",
    "local_rank": "ranks are placed by Ray; leave it out",
    "logger.logging_steps": "every step is logged; leave it out",
    "logger.tensorboard_dir": "each run's folder holds TensorBoard's events and metrics.jsonl; leave it out",
    "logger.wandb.key": (
        "a key among the settings would be in files that others read; put it into the environment as WANDB_API_KEY, and set "
        "report.wandb online"
    ),
    "ref.num_gpus_per_node": _PLACED,
    "ref.num_nodes": _PLACED,
    "ref.offload": "the reference stays on the trainer's ranks; leave it out, and use ds.zero_stage 3 for memory",
    "reward.model_name_or_path": _REWARD_MODEL,
    "reward.normalize_enable": "rewards are taken as they are; normalise them where they are made",
    "reward.num_gpus_per_node": _REWARD_MODEL,
    "reward.num_nodes": _REWARD_MODEL,
    "reward.offload": _REWARD_MODEL,
    "rollout.max_tokens_per_gpu": _TOKENS,
    "rollout.micro_batch_size": _TOKENS,
    "rollout.vllm_generate_batch_size": "engines are kept full by themselves; leave it out, or set async.over_sampling",
    "train.async_enable": "training is always asynchronous; leave it out, and set async.max_staleness, 0 for synchronous steps",
    "train.async_queue_size": "what runs ahead is bounded by age; use async.max_staleness",
    "train.colocate_actor_ref": _PLACED,
    "train.colocate_critic_reward": _PLACED,
    "train.dynamic_batch_enable": _TOKENS,
    "train.micro_batch_size": _TOKENS,
    "train.num_episodes": "a run's length is given in rollout steps; use train.max_steps: episodes x prompts / rollout.batch_size",
    "use_ms": "models and data come from Hugging Face or from folders; download with ModelScope first, and name the folder",
    "vllm.enable_sleep": _SHARED,
    "vllm.sync_with_ray": "use vllm.sync_backend object_store",
}
"""For each option a sentence for after its name: the reason, and after it what to do."""
