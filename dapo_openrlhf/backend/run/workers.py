"""Places and starts the run's actors, and waits until they are ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from dapo_openrlhf.backend.engine.actor import EngineActor
from dapo_openrlhf.backend.engine.rollout_worker import EpisodePlan, EpisodeRules, RolloutWorker, WeightUpdates
from dapo_openrlhf.backend.run.actor_settings import engine_args, openrlhf_settings
from dapo_openrlhf.backend.run.calls import all_within
from dapo_openrlhf.backend.run.environment_checks import environment_settings
from dapo_openrlhf.backend.run.environment_pool import EnvironmentPool
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.placement import Anywhere, Placement, reserve
from dapo_openrlhf.backend.run.rank_watch import RankWatch
from dapo_openrlhf.backend.run.remote_engine import RemoteEngine
from dapo_openrlhf.backend.run.reward_pool import RewardPool, RewardTimes
from dapo_openrlhf.backend.run.start_check import check_agreement
from dapo_openrlhf.backend.run.train_settings import beginning, train_settings
from dapo_openrlhf.backend.trainer.actor import WATCH, rank_actor
from dapo_openrlhf.backend.trainer.reports import RankReady
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.rewards.settings import reward_settings

ENGINE_CONCURRENT_CALLS = 1 << 16


@dataclass(slots=True)
class Workers:
    """The run's actors, started."""

    engines: list[RemoteEngine]
    ranks: list[Any]
    rewards: RewardPool
    notes: tuple[str, ...] = ()
    """Messages for the user about how the actors run."""
    placement: Placement | Anywhere = field(default_factory=Anywhere)
    environments: EnvironmentPool | None = None
    """The environments of all rollouts; then there are no reward workers."""

    @asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        """Pass on what environments print meanwhile, and at the end what a short run has not heard yet."""
        if self.environments is None:
            yield
            return
        listening = asyncio.ensure_future(self.environments.supervise())
        try:
            yield
            await self.environments.pass_on()
        finally:
            listening.cancel()


async def start_workers(
    config: Config, inputs: Inputs, *, training: bool = True, say: Callable[[str], None] = print
) -> Workers:
    """Start every actor at once and wait until all are ready; without ``training`` there are no trainer ranks.

    ``say``: see :class:`RewardPool`.
    """
    placement = reserve(config, inputs.device, training=training)
    environments = _create_environments(config, say)
    engines = _create_engines(config, inputs, placement, _episodes(config, environments), training)
    rewards = _create_rewards(config, say)
    ranks: list[Any] = []
    if training:
        await _create_ranks(config, inputs, placement, ranks)
    if config.train.colocate_all:
        # While vLLM measures the free memory of a GPU, nothing else may allocate or free memory on it.
        imports = {f"trainer rank {index}": rank.import_packages.remote() for index, rank in enumerate(ranks)}
        await _all_ready(config, _readiness(engines) | imports)
    calls = _readiness(engines, rewards, environments)
    starts = {f"trainer rank {index}": start_rank(rank, config, inputs) for index, rank in enumerate(ranks)}
    ready = await _all_ready(config, calls | starts)
    notes = _notes(config, [ready[name] for name in starts])
    if training and config.train.check_agreement:
        notes += (await check_agreement(config, engines, ranks),)
    return Workers(engines, ranks, rewards, notes, placement, environments)


async def replace_ranks(config: Config, inputs: Inputs, workers: Workers) -> None:
    """Start new ranks in the places of those of a trainer that was ended, from the checkpoint in ``inputs``.

    If a machine was lost, the others may have no room until one comes back; that is waited for, as at a run's start.
    Raises ``TrainerLost`` if one of them dies or hangs meanwhile.
    """
    workers.ranks = []
    watch = RankWatch(workers.ranks)
    await watch.told(_create_ranks(config, inputs, workers.placement, workers.ranks))
    await watch.told(_placed(config, workers.ranks))
    starts = {f"trainer rank {index}": start_rank(rank, config, inputs) for index, rank in enumerate(workers.ranks)}
    await watch.during(_all_ready(config, starts))


async def _create_ranks(config: Config, inputs: Inputs, placement: Placement | Anywhere, ranks: list[Any]) -> None:
    """Create the actors and add them to ``ranks``, each as soon as it exists."""
    rank_class, size = rank_actor(), config.trainer_ranks
    environment = {"runtime_env": inputs.device.runtime_env()}

    def create(rank: int, address: str | None, port: int | None) -> Any:
        return rank_class.options(**placement.of_rank(rank), **environment).remote(size, rank, address, port)

    ranks.append(create(0, None, None))
    if size > 1:
        name = "trainer rank 0"
        address, port = (await _all_ready(config, {name: ranks[0].get_master_addr_port.remote()}))[name]
        ranks += [create(rank, address, port) for rank in range(1, size)]


async def _placed(config: Config, ranks: Sequence[Any]) -> None:
    """Wait until every rank has a process, which needs room in the cluster."""
    answers = [rank.alive.options(concurrency_group=WATCH).remote(0.0) for rank in ranks]
    names = [f"trainer rank {index}" for index in range(len(ranks))]
    what = "starting again, which needs room in the cluster (`ray status` shows what is free)"
    await all_within(answers, names, config.async_.start_timeout, what, "async.start_timeout")


def _notes(config: Config, ranks: Sequence[RankReady]) -> tuple[str, ...]:
    wanted = config.ds.attn_implementation
    if wanted == "sdpa" or all(rank.attention == wanted for rank in ranks):
        return ()
    return (
        f"{config.ds.attn_implementation} is not installed: the trainer attends with sdpa over packed sequences, which is "
        "slower; install flash-attn, or set ds.attn_implementation sdpa",
    )


def _create_engines(
    config: Config, inputs: Inputs, placement: Placement | Anywhere, episodes: EpisodePlan | None, training: bool
) -> list[RemoteEngine]:
    worker: type[RolloutWorker] = EngineActor
    device, engine_class = inputs.device, ray.remote(worker)
    updates = WeightUpdates(
        in_flight=config.train.partial_rollout_enable, recompute_kv_cache=config.async_.recompute_kv_cache
    )

    def start(index: int) -> Any:
        return engine_class.options(
            **placement.of_engine(index),
            runtime_env=device.runtime_env(),
            max_concurrency=ENGINE_CONCURRENT_CALLS,
        ).remote(
            name=f"engine {index}",
            engine_args=engine_args(config, device, index, inputs.checkpoint, training=training),
            stop_ids=inputs.stop.ids,
            decode_queries=any(origin.reads_queries for origin in config.reward.origins),
            version=inputs.first_step,
            updates=updates,
            episodes=episodes,
        )

    plays = episodes is not None
    return [RemoteEngine(start, index=index, plays=plays) for index in range(config.vllm.num_engines)]


def _create_environments(config: Config, say: Callable[[str], None]) -> EnvironmentPool | None:
    settings = environment_settings(config)
    return None if settings is None else EnvironmentPool(settings, say=say)


def _episodes(config: Config, environments: EnvironmentPool | None) -> EpisodePlan | None:
    if environments is None:
        return None
    rules = EpisodeRules(
        max_turns=config.rollout.max_turns,
        max_action_tokens=config.rollout.max_action_tokens,
        max_length=config.data.max_len,
        correct_from=config.reward.correct_from,
    )
    return EpisodePlan(
        name=Path(str(config.train.agent_func_path)).name, environments=environments.environments, rules=rules
    )


def _create_rewards(config: Config, say: Callable[[str], None]) -> RewardPool:
    return RewardPool(
        workers=config.reward.num_workers if config.train.agent_func_path is None else 0,
        settings=reward_settings(config.reward),
        times=RewardTimes(
            group=config.async_.reward_timeout,
            start=config.async_.start_timeout,
            server=config.reward.server_timeout,
        ),
        say=say,
    )


def _readiness(
    engines: list[RemoteEngine], rewards: RewardPool | None = None, environments: EnvironmentPool | None = None
) -> dict[str, ray.ObjectRef[Any]]:
    calls = {f"engine {index}": engine.actor.ready.remote() for index, engine in enumerate(engines)}
    for name, pool in (("reward worker", rewards), ("environment actor", environments)):
        calls |= {f"{name} {index}": ready for index, ready in enumerate(pool.ready() if pool else [])}
    return calls


async def _all_ready(config: Config, calls: dict[str, ray.ObjectRef[Any]]) -> dict[str, Any]:
    answers = await all_within(
        [*calls.values()], [*calls], config.async_.start_timeout, "starting the actors", "async.start_timeout"
    )
    return dict(zip(calls, answers, strict=True))


def start_rank(rank: Any, config: Config, inputs: Inputs) -> ray.ObjectRef[Any]:
    """Load models and set up DeepSpeed on one rank; all ranks' calls end together."""
    started: ray.ObjectRef[Any] = rank.start.remote(
        openrlhf_settings=openrlhf_settings(config, inputs.checkpoint),
        device=inputs.device,
        settings=train_settings(config, inputs),
        beginning=beginning(config, inputs),
    )
    return started
