"""The controller alone: the real pipeline in virtual time over engines and a trainer that only wait."""

import asyncio
import math
import random

from dapo_openrlhf.pipeline.agreement import Agreement
from dapo_openrlhf.pipeline.conductor import Training
from dapo_openrlhf.pipeline.engine_pool import EnginePool
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.ports import GenerationEngine, Health, Publication, Sampling
from dapo_openrlhf.plan.actors import SimulatedTrainer
from dapo_openrlhf.plan.scenario import EngineSpeed, Sample, Scenario, Sharing, SyncSpeed, TrainerSpeed, Work
from dapo_openrlhf.plan.simulation import pipeline
from dapo_openrlhf.plan.virtual_time import run_virtual
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt

RESPONSES = 16
GROUPS = 4096
"""About so many groups are generated in a measurement, and at least those of two steps."""


class WaitingEngine:
    """A ``GenerationEngine`` that takes a random time for each group and does nothing in it."""

    life = 0

    def __init__(self, sample: Sample, dice: random.Random, version: list[int]) -> None:
        """``version``: that of the weights, changed from outside."""
        self._sample = sample
        self._dice = dice
        self._version = version
        self.made = 0

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """Wait, and return a group of the sample's lengths, of which two in five are mixed."""
        oldest = self._version[0]
        await asyncio.sleep(self._dice.lognormvariate(0.0, 0.8))
        self.made += 1
        size = len(self._sample.lengths)
        correct = tuple(index == 0 and self._dice.random() < 0.4 for index in range(size))
        return Generation(
            prompt_length=len(prompt.token_ids),
            lengths=self._sample.lengths,
            truncated=(False,) * size,
            cut=(False,) * size,
            oldest_version=PolicyVersion(oldest),
            newest_version=PolicyVersion(self._version[0]),
            version_tokens=(sum(self._sample.lengths), *(0,) * (self._version[0] - oldest)),
            engine=0,
            tokens=None,
            texts=Sample(lengths=self._sample.lengths, correct=correct),
        )

    async def health(self) -> Health:
        """It is always well."""
        return Health(doing="generating", steps_begun=0, steps_ended=0)

    def stop(self, cause: str, *, life: int) -> bool:
        """Nobody may end it."""
        raise AssertionError(cause)

    def cut(self, request: str) -> None:
        """Nobody cuts here."""
        raise AssertionError(request)


class Publisher:
    """A ``WeightPublisher`` that only counts."""

    def __init__(self, version: list[int]) -> None:
        self._version = version

    async def send(self, version: PolicyVersion) -> Publication:
        """Take no time."""
        return Publication(version=version, bytes=0, checksum=0)

    async def deliver(self, publication: Publication) -> None:
        """Make the version the engine's."""
        await asyncio.sleep(0.01)
        self._version[0] = publication.version


def controller_groups(prompts: int, max_staleness: int, groups: int = GROUPS) -> int:
    """Run steps of so many prompts, about ``groups`` in all; returns the number of groups that were generated."""
    sample = Sample(lengths=(100,) * RESPONSES, correct=(True,) + (False,) * (RESPONSES - 1))
    scenario = Scenario(
        engines=1,
        engine=EngineSpeed(step=1.0),
        trainer=TrainerSpeed(step=1.0, per_token=0.0),
        sync=SyncSpeed(send=0.0, deliver=0.0, pause=0.0),
        work=Work(samples=[sample] * 100, prompt_tokens=10, reward_seconds=0.1),
        batch_size=prompts,
        max_staleness=max_staleness,
        steps=max(2, groups * 2 // 5 // prompts),
    )

    async def run() -> int:
        version = [0]
        engine = WaitingEngine(sample, random.Random(0), version)
        engines: list[GenerationEngine] = [engine]
        training = Training(
            trainer=SimulatedTrainer(scenario.trainer, Sharing(), []),
            publisher=Publisher(version),
            agreement=Agreement(limit=math.inf, data_type="fp32"),
        )
        log = EventLog(None, clock=asyncio.get_running_loop().time)
        await pipeline(scenario, EnginePool(engines), training, log).run()
        return engine.made

    return run_virtual(run(), most_rounds=10**9)
