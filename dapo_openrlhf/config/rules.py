"""Rules about combinations of settings, beyond the range of each (standard library)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dapo_openrlhf.algorithm.choices import ESTIMATORS
from dapo_openrlhf.config.environment import EnvironmentSection
from dapo_openrlhf.config.eval_rules import impossible_evaluations
from dapo_openrlhf.config.input_template import input_template
from dapo_openrlhf.config.lora_rules import impossible_adapters
from dapo_openrlhf.config.loss_rules import impossible_losses
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.config.training import TrainSection
from dapo_openrlhf.config.transports import refusal

TEMPLATE_ARGUMENTS = {
    "conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip
"""Arguments of ``apply_chat_template`` that this project sets itself, or that must not be set."""

SUM_TOLERANCE = 1e-3
"""How far shares may be from 1 together: 0.333 0.333 0.333 is meant to be all."""
NAMES = re.compile(r"[^/\x00-\x1f-][^/\x00-\x1f]*")
LONGEST_NAME = 200

MOST_SHARED_MEMORY = 0.7
"""Share of a GPU's memory that an engine may claim where a trainer rank lives on the same GPU."""


def impossible(config: Config) -> Iterator[str]:
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
    if reward.timeout > config.async_.reward_timeout:
        yield (
            f"reward.timeout: {reward.timeout:g} s for one response is more than async.reward_timeout "
            f"{config.async_.reward_timeout:g} s for its group; use at most that"
        )
    if train.ema_beta != TrainSection.model_fields["ema_beta"].default and not train.enable_ema:
        yield f"train.ema_beta: {train.ema_beta:g} has no meaning without an average; set train.enable_ema true, or leave it out"
    yield from _impossible_prompts(config)
    yield from _impossible_environments(config)
    yield from impossible_evaluations(config)
    if config.ckpt.save_steps == 0 or config.ckpt.save_steps < -1:
        yield f"ckpt.save_steps: {config.ckpt.save_steps} is neither -1 nor a positive number of steps"
    yield from _impossible_name(config.run.name)
    yield from _impossible_on_device(config)


def _impossible_name(name: str) -> Iterator[str]:
    """Yield a sentence for a name of a run that cannot be a folder's, or not one that commands take."""
    if name in (".", "..", "latest") or not NAMES.fullmatch(name) or len(name.encode(errors="replace")) > LONGEST_NAME:
        yield (
            f"run.name: {name!r} is not a plain name for a folder; use letters, digits, blanks, - _ . and the like, at most "
            f"{LONGEST_NAME} bytes, without /, not latest, and no - at the beginning"
        )


def _impossible_prompts(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting of how prompts are read that contradicts another."""
    data = config.data
    yield from _impossible_shares(config)
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
    if data.label_key is None and config.needs_answers:
        yield "data.label_key: null leaves the reward rule nothing to compare with; name the column with the answers"


def _impossible_environments(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting that does not go with an environment, or has no meaning without one."""
    path, environment = config.train.agent_func_path, config.environment
    if path is None:
        if environment != EnvironmentSection():
            changed = next(n for n, value in environment if value != EnvironmentSection.model_fields[n].default)
            yield f"environment.{changed}: has no meaning without an environment; set train.agent_func_path, or leave it out"
        return
    if not path.endswith(".py"):
        yield f"train.agent_func_path: {path} is no Python file; give one with AgentExecutor or an Environment"
    if not config.reward.by_rule:
        yield (
            f"reward.remote_url: {' '.join(config.reward.remote_url)} would never be asked, because the environment of "
            "train.agent_func_path gives the rewards; leave one of the two out"
        )
    if environment.timeout > config.async_.generate_timeout:
        yield (
            f"environment.timeout: {environment.timeout:g} s for one step is more than async.generate_timeout "
            f"{config.async_.generate_timeout:g} s for its whole group; use at most that"
        )


def _impossible_shares(config: Config) -> Iterator[str]:
    """Yield a sentence if the files of prompts cannot be mixed, or chosen from, as it was asked for."""
    files, shares = config.data.prompt_dataset, config.data.prompt_probs
    if twice := [file for file in dict.fromkeys(files) if files.count(file) > 1]:
        yield f"data.prompt_dataset: {twice[0]} stands there {files.count(twice[0])} times; name each file once"
    if shares is not None and len(shares) != len(files):
        yield (
            f"data.prompt_probs: {len(shares)} for {len(files)} files in data.prompt_dataset; give one for each file"
        )
    elif shares is not None and abs(sum(shares) - 1) > SUM_TOLERANCE:
        right = " ".join(f"{share / sum(shares):.4g}" for share in shares)
        yield f"data.prompt_probs: {' '.join(map('{:g}'.format, shares))} are {sum(shares):g} together, not 1; use {right}"
    if config.data.curriculum and not config.algo.dynamic_filtering_enable:
        yield (
            "data.curriculum: true draws prompts for groups that dynamic sampling keeps; use it with "
            "algo.dynamic_filtering_enable true"
        )


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
    yield from impossible_losses(config)
    yield from impossible_adapters(config)
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
    if kl.unbiased_gradient and not (kl.use_loss and kl.init_coef > 0):
        yield (
            "algo.kl.unbiased_gradient: true has no meaning without a KL in the loss; use false, or algo.kl.use_loss true with "
            "an algo.kl.init_coef above 0"
        )
    if kl.use_loss and kl.init_coef > 0 and kl.estimator == "k1" and not kl.unbiased_gradient:
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
        if config.ds.use_liger_kernel:
            yield "ds.use_liger_kernel: true needs a GPU, for which alone its kernels are written; use false with device: cpu"
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


def _impossible_transfer(config: Config) -> Iterator[str]:
    """Yield a sentence if weights cannot reach the engines the way that was asked for."""
    backend = config.vllm.sync_backend
    if backend == "auto":
        return
    if problem := refusal(backend, device=config.device, shared=config.train.colocate_all):
        yield f"vllm.sync_backend: {problem}"


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
