"""Wires everything: from a checked configuration to a running pipeline."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dapo_openrlhf import stopping
from dapo_openrlhf.backend.run.actor_settings import training_sampling
from dapo_openrlhf.backend.run.cluster import ray_cluster
from dapo_openrlhf.backend.run.evaluators import evaluator
from dapo_openrlhf.backend.run.inputs import Inputs
from dapo_openrlhf.backend.run.new_trainer import NewTrainer
from dapo_openrlhf.backend.run.node_look import asked_of
from dapo_openrlhf.backend.run.nodes import refuse_lacking_nodes
from dapo_openrlhf.backend.run.publishers.opening import Publisher, open_publisher
from dapo_openrlhf.backend.run.ray_watch import while_ray_lives
from dapo_openrlhf.backend.run.remote_engine import EngineRestarts, ObjectStoreTexts
from dapo_openrlhf.backend.run.remote_trainer import RemoteTrainer, WatchedPublisher
from dapo_openrlhf.backend.run.reward_pool import RewardPool
from dapo_openrlhf.backend.run.run_settings import drawing, limits
from dapo_openrlhf.backend.run.train_settings import plan_settings
from dapo_openrlhf.backend.run.workers import Workers, start_workers
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.bad_updates import BadUpdates
from dapo_openrlhf.pipeline.checkpoint import Checkpoints
from dapo_openrlhf.pipeline.conductor import Outcome, Pipeline, Training
from dapo_openrlhf.pipeline.dynamic_sampling import WINDOW_BATCHES, GroupFilter, OverSampling
from dapo_openrlhf.pipeline.ending import Ending
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.evaluation import Evaluations, ProblemResult
from dapo_openrlhf.pipeline.event_log import EventLog, Listener
from dapo_openrlhf.pipeline.events import Event, WorkerSpans
from dapo_openrlhf.pipeline.health import HealthLimits
from dapo_openrlhf.pipeline.lives import Carried, Lives
from dapo_openrlhf.pipeline.losses import words_of_engines
from dapo_openrlhf.pipeline.ports import EngineReviver
from dapo_openrlhf.pipeline.prompts import PromptStream
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.pipeline.reward_attempts import Attempts, LimitedAttempts
from dapo_openrlhf.pipeline.rollout import LengthShaping, RolloutLoop
from dapo_openrlhf.pipeline.rollout_queue import RolloutQueue
from dapo_openrlhf.pipeline.samples import SampledScorer
from dapo_openrlhf.pipeline.saving import Saver
from dapo_openrlhf.pipeline.schedule import Schedule
from dapo_openrlhf.pipeline.staleness import StalenessPolicy
from dapo_openrlhf.pipeline.stop import StopAsked, StopRequest
from dapo_openrlhf.types import Span

PROGRESS_SECONDS = 10.0
"""Seconds between two progress reports of an evaluation."""
SAMPLE_SECONDS = 5.0
"""How long a sample response may take to arrive, which its group waits for."""


def train(
    config: Config,
    inputs: Inputs,
    *,
    log: EventLog,
    checkpoints: Checkpoints,
    trained_model: str,
    say: Callable[[str], None],
) -> Outcome:
    """Run a whole training. ``log``'s clock must be :func:`time.monotonic`."""

    def on_spans(spans: tuple[Span, ...]) -> None:
        log.emit(WorkerSpans(spans=spans))

    begin = functools.partial(
        NewTrainer,
        config=config,
        inputs=inputs,
        checkpoints=checkpoints,
        open_publisher=functools.partial(open_publisher, config, on_spans=on_spans),
        build=functools.partial(
            build_pipeline,
            config=config,
            log=log,
            checkpoints=checkpoints,
            trained_model=trained_model,
            ending=Ending(limits(config)),
            restarts=_budgets(config),
        ),
        say=say,
    )
    folder = Path(trained_model).parent
    with ray_cluster(config, inputs.device, say=say, logs=folder / "ray_logs"):
        refuse_lacking_nodes(asked_of(config, folder), inputs.device.kind)
        return asyncio.run(while_ray_lives(_train(config, inputs, log, say, begin)))


async def _train(
    config: Config,
    inputs: Inputs,
    log: EventLog,
    say: Callable[[str], None],
    source_of: Callable[..., NewTrainer],
) -> Outcome:
    started = time.monotonic()
    stop, heard = StopRequest(grace=config.train.grace_seconds), list[signal.Signals]()
    loop = asyncio.get_running_loop()

    def hear(number: signal.Signals) -> None:
        heard.append(number)
        loop.call_soon_threadsafe(stop.ask_to_save if number == stopping.SAVING else stop.ask)

    with stopping.listening(hear):
        try:
            source, first = await stop.unless_asked(_ready(config, inputs, say, source_of))
        except StopAsked:
            raise stopping.Stopped(_ending(heard), "nothing was trained yet") from None
        say(f"engines and trainer ready after {time.monotonic() - started:.1f} s")
        async with source.workers.heard():
            outcome = await Lives(first, source, most=config.train.max_restarts, log=log).run(stop)
        if stop.asked:
            outcome.stopped_by = _ending(heard)
        return outcome


def _ending(heard: Sequence[signal.Signals]) -> signal.Signals:
    return next(number for number in heard if number != stopping.SAVING)


async def _ready(
    config: Config, inputs: Inputs, say: Callable[[str], None], source_of: Callable[..., NewTrainer]
) -> tuple[NewTrainer, Pipeline]:
    source = source_of(workers=await start_workers(config, inputs, say=say))
    first = await source.first()
    for note in source.workers.notes:
        say(note)
    return source, first


def evaluate(
    config: Config,
    inputs: Inputs,
    *,
    say: Callable[[str], None],
    on_answered: Callable[[ProblemResult], None],
    progress: Callable[[float], str],
) -> Evaluations:
    """Measure ``actor.model_name_or_path`` on ``eval.dataset``, with engines and reward workers only.

    Every :data:`PROGRESS_SECONDS`, ``progress`` gets the seconds since the first problem was begun, and its text goes
    to ``say``.
    """
    with ray_cluster(config, inputs.device, say=say):
        return asyncio.run(while_ray_lives(_evaluate(config, inputs, say, on_answered, progress)))


async def _evaluate(
    config: Config,
    inputs: Inputs,
    say: Callable[[str], None],
    on_answered: Callable[[ProblemResult], None],
    progress: Callable[[float], str],
) -> Evaluations:
    started = time.monotonic()
    workers = await start_workers(config, inputs, training=False, say=say)
    begun = time.monotonic()
    say(f"engines ready after {begun - started:.1f} s")

    async def report() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            say(progress(time.monotonic() - begun))

    reviver = EngineRestarts(workers.engines, start_timeout=config.async_.start_timeout)
    engines = _pool(config, workers, reviver, _budgets(config), on_event=lambda event: _say_of_engines(event, say))
    measuring = evaluator(config, inputs, engines, workers.rewards, on_answered)
    async with workers.heard(), asyncio.TaskGroup() as tasks:
        helpers = [tasks.create_task(report()), tasks.create_task(engines.supervise())]
        measured = await measuring.measure()
        for helper in helpers:
            helper.cancel()
    return measured


def build_pipeline(
    workers: Workers,
    publisher: Publisher,
    inputs: Inputs,
    carried: Carried,
    *,
    config: Config,
    log: EventLog,
    checkpoints: Checkpoints,
    trained_model: str,
    ending: Ending,
    restarts: Sequence[RestartBudget],
) -> Pipeline:
    """Connect the loops to the workers. ``inputs`` say where they begin."""
    engines = _pool(config, workers, publisher, restarts, on_event=log.emit)
    rollouts = _rollouts(config, inputs, engines, workers.rewards, _queue(config, inputs.first_step, carried), log)
    trainer = _trainer(config, inputs, workers, log)
    return Pipeline(
        engines=engines,
        rollouts=rollouts,
        training=Training(
            trainer=trainer,
            publisher=WatchedPublisher(publisher, trainer.watch),
            agreement=Agreement(limit=config.max_rollout_kl, data_type=config.ds.param_dtype),
        ),
        evaluator=evaluator(config, inputs, engines, workers.rewards) if inputs.problems else None,
        saver=Saver(trainer=trainer, rollouts=rollouts, checkpoints=checkpoints, model_path=trained_model, log=log),
        schedule=Schedule(
            max_steps=config.train.max_steps,
            eval_steps=config.eval.steps,
            save_steps=config.ckpt.save_steps,
            first_step=inputs.first_step,
            evaluates_first=carried.evaluates_first,
            ending=ending,
        ),
        log=log,
    )


def _budgets(config: Config) -> list[RestartBudget]:
    return [RestartBudget(config.vllm.max_restarts) for _ in range(config.vllm.num_engines)]


def _pool(
    config: Config, workers: Workers, reviver: EngineReviver, restarts: Sequence[RestartBudget], *, on_event: Listener
) -> EnginePool:
    return EnginePool(
        workers.engines,
        reviver=reviver,
        restarts=restarts,
        health=HealthLimits(
            answer=config.vllm.health_timeout,
            step=config.vllm.step_timeout,
            must_finish_groups=config.train.agent_func_path is None,
        ),
        on_event=on_event,
    )


def _say_of_engines(event: Event, say: Callable[[str], None]) -> None:
    if words := words_of_engines(event):
        say(words)


def _rollouts(
    config: Config, inputs: Inputs, engines: EnginePool, rewards: RewardPool, queue: RolloutQueue, log: EventLog
) -> RolloutLoop:
    rollout, reward, timing = config.rollout, config.reward, config.async_
    return RolloutLoop(
        prompts=PromptStream(
            inputs.prompts,
            seed=config.train.seed,
            drawing=drawing(config, inputs),
            state=inputs.state.prompts if inputs.state else None,
            prompt_set=inputs.prompt_set,
        ),
        sampler=Sampler(
            engines=engines,
            sampling=training_sampling(rollout),
            timeout=timing.generate_timeout,
            seed=config.train.seed if config.train.full_determinism_enable else None,
            attempts=Attempts(reward.max_attempts),
        ),
        scorer=SampledScorer(
            LimitedAttempts(rewards, most=reward.max_attempts),
            texts=ObjectStoreTexts(timeout=SAMPLE_SECONDS),
            per_step=config.report.samples,
            log=log,
        ),
        queue=queue,
        shaping=LengthShaping(
            max_length=rollout.max_new_tokens,
            buffer_length=reward.overlong_buffer_len or 0,
            factor=reward.overlong_penalty_factor,
            truncated=reward.stop_properly_penalty_coef,
        ),
        cut_late=timing.cut_late,
        log=log,
    )


def _queue(config: Config, version: int, carried: Carried) -> RolloutQueue:
    rollout, timing = config.rollout, config.async_
    return RolloutQueue(
        policy=StalenessPolicy(batch_size=rollout.batch_size, max_staleness=timing.max_staleness, version=version),
        group_filter=GroupFilter(
            enabled=config.algo.dynamic_filtering_enable, score_range=config.algo.dynamic_filtering_range
        ),
        over_sampling=OverSampling(
            factor=timing.over_sampling_factor,
            window=WINDOW_BATCHES * rollout.batch_size,
        ),
        max_filtered_batches=config.algo.max_filtered_batches,
        stall_timeout=stall_timeout(config),
        ledger=carried.ledger,
    )


def _trainer(config: Config, inputs: Inputs, workers: Workers, log: EventLog) -> RemoteTrainer:
    return RemoteTrainer(
        workers.ranks,
        plan_settings(config),
        timeout=config.async_.train_timeout,
        on_spans=lambda spans: log.emit(WorkerSpans(spans=spans)),
        on_outcomes=BadUpdates(str(inputs.bad_batches), most=config.train.max_bad_updates, on_event=log.emit).note,
    )


def stall_timeout(config: Config) -> float:
    """Seconds longer than any wait of a group: the deadline of each wait, which names who is late, expires earlier."""
    timing, reward = config.async_, config.reward
    served = any(origin.may_be_away for origin in reward.origins)
    waits = (timing.start_timeout, timing.publish_timeout, timing.generate_timeout, timing.reward_timeout)
    return sum(waits) + (reward.server_timeout if served else 0.0)
