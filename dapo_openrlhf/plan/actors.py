"""Models of rewards, trainer and weight sync, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.plan.engine import SimulatedEngine
from dapo_openrlhf.plan.scenario import Sample, SyncSpeed, TrainerSpeed
from dapo_openrlhf.types import PolicyVersion, Prompt, Score, TrainBatch


class SimulatedRewards:
    """A ``RewardScorer`` that takes a fixed time for each group."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses of a sample, as it says."""
        assert isinstance(texts, Sample)
        await asyncio.sleep(self._seconds)
        return tuple(Score(correct=right, reward=1.0 if right else -1.0) for right in texts.correct)


class SimulatedTrainer:
    """A ``PolicyTrainer`` whose steps take as long as their tokens need."""

    def __init__(self, speed: TrainerSpeed) -> None:
        self._speed = speed
        self.busy = 0.0
        """Seconds of training."""

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        """Train for a while."""
        tokens = sum(group.response_tokens + group.prompt_length * len(group.rollouts) for group in batch.groups)
        seconds = self._speed.step + self._speed.per_token * tokens
        self.busy += seconds
        await asyncio.sleep(seconds)
        return {}

    async def supervise(self) -> None:
        """Wait until cancelled, since nothing happens to a model."""
        await asyncio.get_running_loop().create_future()

    async def save(self, path: str) -> None:
        """Nothing is saved."""

    async def snapshot(self, path: str) -> None:
        """Nothing is saved."""

    async def write_snapshot(self) -> None:
        """Nothing is saved."""


class SimulatedPublisher:
    """A ``WeightPublisher`` that takes fixed times."""

    def __init__(self, speed: SyncSpeed, engines: Sequence[SimulatedEngine]) -> None:
        self._speed = speed
        self._engines = engines

    async def send(self, version: PolicyVersion) -> Publication:
        """Keep the trainer waiting."""
        await asyncio.sleep(self._speed.send)
        return Publication(version=version, bytes=0, checksum=0)

    async def deliver(self, publication: Publication) -> None:
        """Have every engine pause and take the version."""
        await asyncio.sleep(max(0.0, self._speed.deliver - self._speed.pause))
        for engine in self._engines:
            engine.load(publication.version, pause=self._speed.pause)
        await asyncio.sleep(self._speed.pause)


class NoCheckpoints:
    """A ``CheckpointStore`` without a place."""

    def begin(self, step: int) -> str:
        """No folder."""
        return ""

    async def complete(self, state: RunState) -> str:
        """No folder."""
        return ""

    def discard(self, step: int) -> None:
        """Nothing to remove."""

    def evaluated(self, step: int, estimates: Mapping[str, float]) -> None:
        """Nothing is kept."""
