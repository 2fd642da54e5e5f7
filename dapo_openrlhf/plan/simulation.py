"""Runs a scenario: the real pipeline over models, in virtual time."""

from __future__ import annotations

import asyncio
import math
import random

from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.conductor import Pipeline, Training
from dapo_openrlhf.pipeline.dynamic_sampling import WINDOW_BATCHES, GroupFilter, OverSampling
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.event_log import EventLog, Lines
from dapo_openrlhf.pipeline.events import RunStarted
from dapo_openrlhf.pipeline.ports import Sampling
from dapo_openrlhf.pipeline.prompts import PromptStream
from dapo_openrlhf.pipeline.rollout import LengthShaping, RolloutLoop
from dapo_openrlhf.pipeline.rollout_queue import RolloutQueue
from dapo_openrlhf.pipeline.saving import Saver
from dapo_openrlhf.pipeline.schedule import Schedule
from dapo_openrlhf.pipeline.staleness import StalenessPolicy
from dapo_openrlhf.plan.actors import NoCheckpoints, SimulatedPublisher, SimulatedRewards, SimulatedTrainer
from dapo_openrlhf.plan.engine import SimulatedEngine
from dapo_openrlhf.plan.prediction import Prediction, Recorder
from dapo_openrlhf.plan.scenario import Sample, Scenario
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Prompt

FOREVER = 1e12
"""Seconds of virtual time that no wait reaches; models never fail."""
ROUNDS_PER_GROUP = 200
"""Turns of the event loop that a group needs at most, in any settings."""


def simulate(scenario: Scenario, *, file: Lines | None = None) -> Prediction:
    """Predict a run. Takes some tenths of a millisecond of processor time for each group.

    ``file`` gets the event log that such a run would write.
    """
    groups = scenario.steps * scenario.batch_size / max(scenario.work.pass_rate, 0.02)
    rounds = int(ROUNDS_PER_GROUP * (groups + 1000) * scenario.responses)
    return run_virtual(_simulate(scenario, file), most_rounds=rounds)


async def _simulate(scenario: Scenario, file: Lines | None) -> Prediction:
    log = EventLog(file, clock=asyncio.get_running_loop().time)
    log.emit(_started(scenario))
    draw = _Draw(scenario)
    engines = [SimulatedEngine(index, scenario.engine, draw, version=0) for index in range(scenario.engines)]
    trainer = SimulatedTrainer(scenario.trainer, scenario.sharing, engines)
    recorder = Recorder(scenario, log, engines, trainer)
    training = Training(
        trainer=trainer,
        publisher=SimulatedPublisher(scenario.sync, engines, log),
        agreement=Agreement(limit=math.inf, data_type="fp32"),
    )
    await pipeline(scenario, EnginePool(engines), training, log).run()
    return recorder.prediction()


def pipeline(scenario: Scenario, engines: EnginePool, training: Training, log: EventLog) -> Pipeline:
    """The real pipeline with a scenario's settings and rewards, over any engines and trainer."""
    rollouts = _rollouts(scenario, engines, log)
    trainer = training.trainer
    return Pipeline(
        engines=engines,
        rollouts=rollouts,
        training=training,
        evaluator=None,
        saver=Saver(trainer=trainer, rollouts=rollouts, checkpoints=NoCheckpoints(), model_path="", log=log),
        schedule=Schedule(max_steps=scenario.steps),
        log=log,
    )


def _started(scenario: Scenario) -> RunStarted:
    return RunStarted(
        unix_time=0.0,
        engines=scenario.engines,
        trainer_ranks=1,
        devices=scenario.engines + 1,
        max_staleness=scenario.max_staleness,
        batch_size=scenario.batch_size,
        first_step=0,
    )


def _rollouts(scenario: Scenario, engines: EnginePool, log: EventLog) -> RolloutLoop:
    longest = scenario.work.longest[-1]
    return RolloutLoop(
        prompts=PromptStream(scenario.work.prompts(), seed=scenario.seed),
        sampler=Sampler(
            engines=engines,
            sampling=Sampling(n=scenario.responses, max_new_tokens=longest + 1, temperature=1.0, top_p=1.0),
            timeout=FOREVER,
        ),
        scorer=SimulatedRewards(scenario.work.reward_seconds),
        queue=RolloutQueue(
            policy=StalenessPolicy(batch_size=scenario.batch_size, max_staleness=scenario.max_staleness),
            group_filter=GroupFilter(enabled=scenario.filtered),
            over_sampling=OverSampling(factor=scenario.over_sampling, window=WINDOW_BATCHES * scenario.batch_size),
            max_filtered_batches=1000,
            stall_timeout=FOREVER,
        ),
        shaping=LengthShaping(max_length=longest + 1, buffer_length=0, factor=0.0),
        cut_late=scenario.cut_late,
        log=log,
    )


class _Draw:
    """Draws the responses to a prompt; the same prompt may get others when it is tried again."""

    def __init__(self, scenario: Scenario) -> None:
        self._samples = scenario.work.samples
        self._dice = random.Random(scenario.seed)

    def __call__(self, prompt: Prompt) -> Sample:
        return self._dice.choice(self._samples)
