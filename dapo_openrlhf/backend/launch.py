"""All wiring: from a checked configuration to a running pipeline and its folder."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from dapo_openrlhf.algorithm import ESTIMATORS
from dapo_openrlhf.backend.cluster import check_devices, ray_cluster
from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.engine import EngineActor
from dapo_openrlhf.backend.placement import Anywhere, Placement, reserve
from dapo_openrlhf.backend.policy import PolicyActor, RankReady
from dapo_openrlhf.backend.publish import IpcPublisher, NcclPublisher
from dapo_openrlhf.backend.remote import (
    ObjectStorePublisher,
    ObjectStoreTexts,
    OnSpans,
    RemoteEngine,
    RemoteTrainer,
    all_within,
)
from dapo_openrlhf.backend.rewards import RewardPool
from dapo_openrlhf.backend.step_settings import AdvantageSettings, LossSettings
from dapo_openrlhf.checkpoint import Checkpoints, RunState
from dapo_openrlhf.config import Config, ConfigError
from dapo_openrlhf.dynamic_sampling import GroupFilter, OverSampling
from dapo_openrlhf.engine_pool import EnginePool
from dapo_openrlhf.evaluation import Evaluation, Evaluator
from dapo_openrlhf.event_log import EventLog
from dapo_openrlhf.events import WorkerSpans
from dapo_openrlhf.judge.process import Judge, JudgeUnavailable
from dapo_openrlhf.judge.settings import JudgeSettings, judge_settings
from dapo_openrlhf.pipeline import Outcome, Pipeline
from dapo_openrlhf.ports import Sampling
from dapo_openrlhf.prompts import PromptStream, load_prompts
from dapo_openrlhf.reward_attempts import LimitedAttempts
from dapo_openrlhf.rollout import LengthShaping, RolloutLoop
from dapo_openrlhf.rollout_queue import RolloutQueue
from dapo_openrlhf.staleness import StalenessPolicy
from dapo_openrlhf.types import Prompt

ENGINE_SEQUENCES = 512
ENGINE_BATCHED_TOKENS = 8192
ENGINE_CONCURRENT_CALLS = 1 << 16
OVER_SAMPLING_WINDOW = 2
"""Batches' worth of judged groups that the pass rate is measured over."""
TRANSFER_ENGINES = {"object_store": "object_store", "nccl": "checked_nccl", "ipc": "checked_ipc"}
"""``vllm.sync_backend`` as vLLM's weight-transfer engines are registered."""


Publisher = ObjectStorePublisher | NcclPublisher | IpcPublisher


@dataclass(slots=True)
class Workers:
    """The run's actors, started."""

    engines: list[RemoteEngine]
    ranks: list[Any]
    rewards: RewardPool
    notes: tuple[str, ...] = ()
    """What the user should know about how they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a run needs before anything is started."""

    device: Device
    prompts: list[Prompt]
    problems: list[Prompt]
    """Held-out problems; empty without ``eval.dataset``."""
    checkpoint: Path | None = None
    """Folder to resume from."""
    state: RunState | None = None
    """What that folder says."""

    @property
    def first_step(self) -> int:
        """Rollout steps that an earlier run has done; also the version of the weights at the start."""
        return self.state.step if self.state else 0


def check_inputs(config: Config, *, training: bool, checkpoint: Path | None = None) -> Inputs:
    """Read the data and look for model and devices. Raises ``ConfigError`` for whatever would fail later."""
    engines = config.vllm.num_engines * config.vllm.tensor_parallel_size
    allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") + os.environ.get("PYTORCH_ALLOC_CONF", "")
    if config.weight_transfer == "ipc" and "expandable_segments:True" in allocator:
        raise ConfigError(
            "PYTORCH_CUDA_ALLOC_CONF: with expandable_segments:True processes share memory slowly or, in most containers, "
            "not at all, which vllm.sync_backend ipc needs; unset it, or use vllm.sync_backend object_store"
        )
    device = Device.of(config.device, processes=engines + (config.trainer_ranks if training else 0))
    check_model(config.actor.model_name_or_path)
    if training and config.critic.model_name_or_path is not None:
        check_model(config.critic.model_name_or_path, "critic.model_name_or_path")
    check_rewards(judge_settings(config.reward))
    prompts = read_prompts(config, config.data.prompt_dataset) if training else []
    problems = read_prompts(config, config.eval.dataset) if config.eval.dataset else []
    if not os.environ.get("RAY_ADDRESS"):
        check_devices(config, device, device.count(), "this machine")
    state = None if checkpoint is None else RunState.read(checkpoint)
    if state is not None and state.step >= config.train.max_steps:
        raise ConfigError(
            f"train.max_steps: {config.train.max_steps} rollout steps are done already in {checkpoint}; use more to go on"
        )
    return Inputs(device=device, prompts=prompts, problems=problems, checkpoint=checkpoint, state=state)


def check_rewards(settings: JudgeSettings) -> None:
    """Load users' files once, here. Raises ``ConfigError`` with what they raise."""
    if any(source.endswith(".py") for source in settings.sources):
        with Judge(settings) as judge:
            try:
                judge.wait_ready()
            except JudgeUnavailable as error:
                raise ConfigError(f"reward.remote_url: {' '.join(settings.sources)}: {error}") from error


def model_path(config: Config, checkpoint: Path | None = None) -> str:
    """The model to begin with, as every process of a cluster finds it."""
    return local_model(config.actor.model_name_or_path if checkpoint is None else str(checkpoint))


def local_model(name_or_path: str) -> str:
    """Absolute if it is a folder, else a hub's name."""
    path = Path(name_or_path)
    return str(path.resolve()) if path.is_dir() else name_or_path


def check_model(name_or_path: str, setting: str = "actor.model_name_or_path") -> None:
    """Refuse a path that holds no model; a name on the Hugging Face hub is left to transformers."""
    path = Path(name_or_path)
    looks_like_path = path.is_absolute() or name_or_path.startswith(".") or len(path.parts) > 2 or path.exists()
    if looks_like_path and not (path / "config.json").is_file():
        raise ConfigError(f"{setting}: there is no model in {name_or_path} (no config.json)")


def train(
    config: Config,
    inputs: Inputs,
    *,
    log: EventLog,
    checkpoints: Checkpoints,
    trained_model: str,
    say: Callable[[str], None],
    on_step: Callable[[int], None],
    on_evaluation: Callable[[int, Evaluation], None],
) -> Outcome:
    """Run a whole training. ``log``'s clock must be :func:`time.monotonic`."""
    with ray_cluster(config, inputs.device):
        return asyncio.run(_train(config, inputs, log, checkpoints, trained_model, say, on_step, on_evaluation))


async def _train(
    config: Config,
    inputs: Inputs,
    log: EventLog,
    checkpoints: Checkpoints,
    trained_model: str,
    say: Callable[[str], None],
    on_step: Callable[[int], None],
    on_evaluation: Callable[[int, Evaluation], None],
) -> Outcome:
    started = time.monotonic()
    workers = await start_workers(config, inputs)
    publisher = await open_publisher(config, workers, on_spans=lambda spans: log.emit(WorkerSpans(spans=spans)))
    for note in workers.notes:
        say(note)
    say(f"engines and trainer ready after {time.monotonic() - started:.1f} s")
    pipeline = build_pipeline(
        config, workers, publisher, inputs, log, checkpoints, trained_model, on_step, on_evaluation
    )
    return await pipeline.run()


def evaluate(config: Config, inputs: Inputs) -> Evaluation:
    """Measure ``actor.model_name_or_path`` on ``eval.dataset``, with engines and reward workers only."""
    with ray_cluster(config, inputs.device):
        return asyncio.run(_evaluate(config, inputs))


async def _evaluate(config: Config, inputs: Inputs) -> Evaluation:
    placement = reserve(config, inputs.device, training=False)
    engines = _create_engines(config, inputs, placement)
    rewards = _create_rewards(config)
    await _all_ready(config, _readiness(engines, rewards))
    pool = EnginePool(engines)
    return await _evaluator(config, inputs.problems, pool, rewards).measure()


def read_prompts(config: Config, dataset: str) -> list[Prompt]:
    """The prompts of a data set as the configuration says."""
    data = config.data
    return load_prompts(
        Path(dataset), input_key=data.input_key, label_key=data.label_key, input_template=data.input_template
    )


async def start_workers(config: Config, inputs: Inputs) -> Workers:
    """Start every actor at once and wait until all are ready."""
    device = inputs.device
    placement = reserve(config, device, training=True)
    engines = _create_engines(config, inputs, placement)
    if config.train.colocate_all:
        # While vLLM measures what memory there is, nothing else may take or give back any on the same GPU.
        await _all_ready(config, _readiness(engines))
    rewards = _create_rewards(config)
    rank_class = ray.remote(PolicyActor)
    environment = {"runtime_env": {"env_vars": dict(device.environment())}}
    size = config.trainer_ranks
    ranks = [rank_class.options(**placement.of_rank(0), **environment).remote(size, 0, None, None)]
    if size > 1:
        address, port = await ranks[0].get_master_addr_port.remote()
        ranks += [
            rank_class.options(**placement.of_rank(rank), **environment).remote(size, rank, address, port)
            for rank in range(1, size)
        ]
    calls = _readiness(engines, rewards)
    names = [f"trainer rank {index}" for index in range(size)]
    calls |= {name: start_rank(rank, config, inputs) for name, rank in zip(names, ranks, strict=True)}
    ready = await _all_ready(config, calls)
    return Workers(engines, ranks, rewards, _notes(config, ready[names[0]]))


def _notes(config: Config, rank: RankReady) -> tuple[str, ...]:
    if rank.attention == config.ds.attn_implementation or config.ds.attn_implementation == "sdpa":
        return ()
    return (
        f"{config.ds.attn_implementation} is not installed: the trainer attends with sdpa over packed sequences, which is "
        "slower; install flash-attn, or set ds.attn_implementation sdpa",
    )


async def open_publisher(config: Config, workers: Workers, *, on_spans: OnSpans) -> Publisher:
    """The publisher for the way that weights take, ready for the first publication."""
    ranks, timing = workers.ranks, config.async_
    # An engine that finishes what it has begun answers only then.
    timeout = timing.publish_timeout + (0 if config.train.partial_rollout_enable else timing.generate_timeout)
    if config.weight_transfer == "object_store":
        return ObjectStorePublisher(
            ranks, workers.engines, timeout=timeout, start_timeout=timing.start_timeout, on_spans=on_spans
        )
    engines = [engine.actor for engine in workers.engines]
    publisher = (
        IpcPublisher(ranks, engines, timeout=timeout, on_spans=on_spans)
        if config.weight_transfer == "ipc"
        else NcclPublisher(
            ranks,
            engines,
            workers_per_engine=config.vllm.tensor_parallel_size,
            timeout=timeout,
            on_spans=on_spans,
        )
    )
    await publisher.open()
    return publisher


def _create_engines(config: Config, inputs: Inputs, placement: Placement | Anywhere) -> list[RemoteEngine]:
    device, engine_class = inputs.device, ray.remote(EngineActor)

    def start(index: int) -> Any:
        return engine_class.options(
            **placement.of_engine(index),
            runtime_env={"env_vars": dict(device.environment())},
            max_concurrency=ENGINE_CONCURRENT_CALLS,
        ).remote(
            name=f"engine {index}",
            engine_args=engine_args(config, device, index, inputs.checkpoint),
            apply_chat_template=config.data.apply_chat_template,
            max_len=config.data.max_len,
            version=inputs.first_step,
            weights_in_flight=config.train.partial_rollout_enable,
            recompute_kv_cache=config.async_.kv_cache == "recompute",
        )

    return [RemoteEngine(start, index=index) for index in range(config.vllm.num_engines)]


def _create_rewards(config: Config) -> RewardPool:
    return RewardPool(
        workers=config.reward.num_workers,
        settings=judge_settings(config.reward),
        timeout=config.async_.reward_timeout,
        start_timeout=config.async_.start_timeout,
    )


def _readiness(engines: list[RemoteEngine], rewards: RewardPool | None = None) -> dict[str, ray.ObjectRef]:
    calls = {f"engine {index}": engine.actor.ready.remote() for index, engine in enumerate(engines)}
    return calls | {f"reward worker {index}": ready for index, ready in enumerate(rewards.ready() if rewards else [])}


async def _all_ready(config: Config, calls: dict[str, ray.ObjectRef]) -> dict[str, Any]:
    answers = await all_within(
        [*calls.values()], [*calls], config.async_.start_timeout, "starting the actors", "async.start_timeout"
    )
    return dict(zip(calls, answers, strict=True))


def start_rank(rank: Any, config: Config, inputs: Inputs) -> ray.ObjectRef:
    """Load models and set up DeepSpeed on one rank; all ranks' calls end together."""
    advantage, kl = config.algo.advantage, config.algo.kl
    estimator = ESTIMATORS[advantage.estimator]
    return rank.start.remote(
        openrlhf_settings=openrlhf_settings(config, inputs.checkpoint),
        device=inputs.device,
        checkpoint=None if inputs.checkpoint is None else str(inputs.checkpoint.resolve()),
        reference=model_path(config) if kl.init_coef > 0 else None,  # also after a resume
        loss=LossSettings(
            eps_clip_low_high=config.actor.eps_clip_low_high,
            dual_clip=config.actor.dual_clip,
            policy_loss_type=config.actor.policy_loss_type,
            kl_coef=kl.init_coef if kl.use_loss else 0.0,
            kl_estimator=kl.estimator,
            old_logprobs=config.async_.old_logprobs,
            is_correction_level=advantage.is_correction_level,
            is_correction_mode=advantage.is_correction_mode,
            is_correction_threshold=advantage.is_correction_threshold,
            temperature=config.rollout.temperature,
        ),
        advantages=AdvantageSettings(
            critic=estimator.critic,
            whitened=estimator.whitened,
            gamma=advantage.gamma,
            lambd=advantage.lambd,
            no_std_norm=advantage.no_std_norm,
            kl_coef=0.0 if kl.use_loss else kl.init_coef,
            kl_estimator=kl.estimator,
        ),
        total_updates=config.gradient_steps,
    )


def openrlhf_settings(config: Config, checkpoint: Path | None = None) -> dict[str, Any]:
    """What OpenRLHF's classes read, under OpenRLHF's names."""
    actor, critic = config.actor, config.critic
    return {
        "actor.model_name_or_path": model_path(config, checkpoint),
        "actor.gradient_checkpointing_enable": actor.gradient_checkpointing_enable,
        "actor.adam.lr": actor.adam.lr,
        "actor.adam.betas": actor.adam.betas,
        "actor.adam.eps": actor.adam.eps,
        "actor.adam.weight_decay": actor.adam.weight_decay,
        "actor.lr_scheduler": actor.lr_scheduler,
        "actor.lr_warmup_ratio": config.lr_warmup_ratio,
        "actor.max_norm": actor.max_norm,
        "critic.model_name_or_path": local_model(critic.model_name_or_path or actor.model_name_or_path),
        "critic.adam.lr": critic.adam.lr,
        "critic.adam.betas": critic.adam.betas,
        "critic.adam.eps": critic.adam.eps,
        "critic.adam.weight_decay": critic.adam.weight_decay,
        "critic.value_clip": critic.value_clip,
        "critic.save_value_network": critic.save_value_network,
        "ds.zero_stage": config.ds.zero_stage,
        "ds.param_dtype": config.ds.param_dtype,
        "ds.attn_implementation": config.ds.attn_implementation,
        "ds.adam_offload": config.ds.adam_offload,
        "train.batch_size": config.train.batch_size,
        "train.seed": config.train.seed,
    }


def engine_args(config: Config, device: Device, index: int, checkpoint: Path | None = None) -> dict[str, Any]:
    """vLLM's arguments for one engine, sized from the work it will get."""
    vllm = config.vllm
    dtypes = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    return {
        "model": model_path(config, checkpoint),
        "dtype": dtypes[config.ds.param_dtype],
        "trust_remote_code": True,
        "seed": config.train.seed + index,
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "max_model_len": config.data.max_len,
        "max_num_seqs": max_num_seqs(config),
        "max_num_batched_tokens": vllm.max_num_batched_tokens or max(ENGINE_BATCHED_TOKENS, config.data.max_len),
        "enable_prefix_caching": vllm.enable_prefix_caching,
        "enforce_eager": vllm.enforce_eager,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        **_transfer_settings(config),
        **device.engine_settings(
            kv_cache_memory_bytes=vllm.kv_cache_memory_bytes, gpu_memory_utilization=vllm.gpu_memory_utilization
        ),
    }


def max_num_seqs(config: Config) -> int:
    """Responses that one engine generates at once."""
    slots = (config.async_.max_staleness + 1) * config.rollout.batch_size
    groups = slots if config.async_.over_sampling == 1 else 2 * slots
    sequences = -(-groups // config.vllm.num_engines) * config.rollout.n_samples_per_prompt
    return config.vllm.max_num_seqs or min(sequences, ENGINE_SEQUENCES)


def _transfer_settings(config: Config) -> dict[str, Any]:
    """vLLM's arguments for the way that weights take, and for workers that are processes of their own."""
    settings: dict[str, Any] = {"weight_transfer_config": {"backend": TRANSFER_ENGINES[config.weight_transfer]}}
    if config.weight_transfer != "object_store":
        settings["worker_extension_cls"] = "dapo_openrlhf.backend.weights_cuda.WorkerExtension"
    if config.vllm.tensor_parallel_size > 1:
        settings["distributed_executor_backend"] = "mp"  # all on the actor's own GPUs, so no Ray inside Ray
    return settings


def build_pipeline(
    config: Config,
    workers: Workers,
    publisher: Publisher,
    inputs: Inputs,
    log: EventLog,
    checkpoints: Checkpoints,
    trained_model: str,
    on_step: Callable[[int], None],
    on_evaluation: Callable[[int, Evaluation], None],
) -> Pipeline:
    """Connect the loops to the workers."""
    rollout, reward, timing = config.rollout, config.reward, config.async_
    engines = EnginePool(workers.engines, reviver=publisher, max_restarts=config.vllm.max_restarts, on_event=log.emit)
    queue = RolloutQueue(
        policy=StalenessPolicy(
            batch_size=rollout.batch_size, max_staleness=timing.max_staleness, version=inputs.first_step
        ),
        group_filter=GroupFilter(enabled=config.algo.dynamic_filtering_enable),
        over_sampling=OverSampling(
            factor=None if timing.over_sampling == "auto" else timing.over_sampling,
            window=OVER_SAMPLING_WINDOW * rollout.batch_size,
        ),
        max_filtered_batches=config.algo.max_filtered_batches,
        stall_timeout=timing.generate_timeout + timing.reward_timeout,
    )
    rollouts = RolloutLoop(
        prompts=PromptStream(
            inputs.prompts, seed=config.train.seed, state=inputs.state.prompts if inputs.state else None
        ),
        engines=engines,
        scorer=LimitedAttempts(workers.rewards, most=reward.max_attempts),
        queue=queue,
        sampling=Sampling(
            n=rollout.n_samples_per_prompt,
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
        ),
        shaping=LengthShaping(
            max_length=rollout.max_new_tokens,
            buffer_length=reward.overlong_buffer_len or 0,
            factor=reward.overlong_penalty_factor,
        ),
        generate_timeout=timing.generate_timeout,
        cut_late=timing.at_deadline == "cut",
        log=log,
    )

    trainer = RemoteTrainer(
        workers.ranks,
        train_batch_size=config.train.batch_size,
        max_epochs=config.train.max_epochs,
        max_tokens=config.train.max_tokens_per_gpu,
        overlong_filtering=reward.overlong_filtering_enable,
        estimator=config.algo.advantage.estimator,
        loss_agg_mode=config.actor.loss_agg_mode,
        longest_response=rollout.max_new_tokens,
        seed=config.train.seed,
        timeout=timing.train_timeout,
        on_spans=lambda spans: log.emit(WorkerSpans(spans=spans)),
    )
    return Pipeline(
        rollouts=rollouts,
        queue=queue,
        trainer=trainer,
        publisher=publisher,
        evaluator=_evaluator(config, inputs.problems, engines, workers.rewards) if inputs.problems else None,
        log=log,
        max_steps=config.train.max_steps,
        eval_steps=config.eval.steps,
        save_steps=config.ckpt.save_steps,
        checkpoints=checkpoints,
        model_path=trained_model,
        first_step=inputs.first_step,
        on_step=on_step,
        on_evaluation=on_evaluation,
    )


def _evaluator(config: Config, problems: list[Prompt], engines: EnginePool, rewards: RewardPool) -> Evaluator:
    samples = config.eval.n_samples_per_prompt
    return Evaluator(
        problems=problems,
        engines=engines,
        scorer=rewards,
        texts=ObjectStoreTexts(),
        sampling=Sampling(
            n=samples,
            max_new_tokens=config.eval.max_new_tokens or config.rollout.max_new_tokens,
            temperature=config.eval.temperature,
            top_p=config.eval.top_p,
        ),
        generate_timeout=config.async_.generate_timeout,
        # Each engine full, and as much again waiting, so that none runs dry between two problems.
        concurrency=max(1, 2 * config.vllm.num_engines * max_num_seqs(config) // samples),
    )
