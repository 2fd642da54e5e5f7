"""Models of rewards, trainer and weight sync, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import WorkerSpans
from dapo_openrlhf.pipeline.ports import Publication
from dapo_openrlhf.plan.engine import SimulatedEngine
from dapo_openrlhf.plan.scenario import Sample, Sharing, SyncSpeed, TrainerSpeed
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Score, Span, TrainBatch


class SimulatedRewards:
    """A ``GroupScorer`` that takes the time of each sample, or a fixed one."""

    def __init__(self, seconds: float) -> None:
        """``seconds``: duration for samples that say none."""
        self._seconds = seconds

    async def score(self, generation: Generation, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses of a sample, as it says."""
        sample = generation.texts
        assert isinstance(sample, Sample)
        await asyncio.sleep(self._seconds if sample.reward_seconds is None else sample.reward_seconds)
        return tuple(Score(correct=right, reward=1.0 if right else -1.0) for right in sample.correct)


class SimulatedTrainer:
    """A ``PolicyTrainer`` whose steps take as long as their tokens need."""

    def __init__(self, speed: TrainerSpeed, sharing: Sharing, engines: Sequence[SimulatedEngine]) -> None:
        self._speed = speed
        self._sharing = sharing
        self._engines = engines
        self._changed = asyncio.Event()
        self.busy = 0.0
        """Seconds of training."""
        if sharing.trainer > 0:
            for engine in engines:
                engine.on_change = self._changed.set

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        """Train for a while."""
        tokens = sum(group.response_tokens + group.prompt_length * len(group.rollouts) for group in batch.groups)
        began = asyncio.get_running_loop().time()
        self._slow_engines(1 + self._sharing.engine)
        try:
            await self._work(self._speed.step + self._speed.per_token * tokens)
        finally:
            self._slow_engines(1.0)
            self.busy += asyncio.get_running_loop().time() - began
        return {}

    async def _work(self, seconds: float) -> None:
        """Take ``seconds``, and longer while engines generate that share the trainer's device."""
        if self._sharing.trainer == 0:
            await asyncio.sleep(seconds)
            return
        now = asyncio.get_running_loop().time
        while seconds > 0:
            self._changed.clear()
            generating = sum(engine.generating for engine in self._engines) / len(self._engines)
            slowness, began = 1 + self._sharing.trainer * generating, now()
            try:
                async with asyncio.timeout(seconds * slowness):
                    await self._changed.wait()
            except TimeoutError:
                return
            seconds -= (now() - began) / slowness

    def _slow_engines(self, factor: float) -> None:
        if self._sharing.engine > 0:
            for engine in self._engines:
                engine.slow_down(factor)

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

    def __init__(self, speed: SyncSpeed, engines: Sequence[SimulatedEngine], log: EventLog) -> None:
        """``log`` gets the engines' pauses."""
        self._speed = speed
        self._engines = engines
        self._log = log

    async def send(self, version: PolicyVersion) -> Publication:
        """Keep the trainer waiting."""
        await asyncio.sleep(self._speed.send)
        return Publication(version=version, bytes=0, checksum=0)

    async def deliver(self, publication: Publication) -> None:
        """Have every engine pause and take the version."""
        await asyncio.sleep(max(0.0, self._speed.deliver - self._speed.pause))
        for engine in self._engines:
            engine.load(publication.version, pause=self._speed.pause)
        began = self._log.now()
        await asyncio.sleep(self._speed.pause)
        self._log.emit(
            WorkerSpans(
                spans=tuple(
                    Span(worker=f"engine {index}", kind="load_weights", start=began, end=self._log.now())
                    for index in range(len(self._engines))
                )
            )
        )


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
