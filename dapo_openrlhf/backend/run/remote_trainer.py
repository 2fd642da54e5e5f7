"""The controller's view of the trainer's ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from dapo_openrlhf.backend.run.calls import PipelineTimeout, WorkerDied, all_within
from dapo_openrlhf.backend.run.rank_watch import RankWatch
from dapo_openrlhf.backend.run.step_statistics import step_statistics
from dapo_openrlhf.backend.trainer.reports import StepReport
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch
from dapo_openrlhf.pipeline.ports import Publication, TrainerLost, WeightPublisher
from dapo_openrlhf.types import PolicyVersion, Span, TrainBatch

OnSpans = Callable[[tuple[Span, ...]], None]
OnOutcomes = Callable[[TrainBatch, Sequence[UpdateOutcome]], None]


class RemoteTrainer:
    """All trainer ranks together. A ``PolicyTrainer`` that makes one call per rank and rollout step.

    The trainer is lost when a rank's process dies, does not answer, or is late. An exception that a rank raises is no
    loss, be it for want of memory or about numbers that are not finite: it would come again, and ends the run.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        plan: PlanSettings,
        *,
        timeout: float,
        on_spans: OnSpans = lambda spans: None,
        on_outcomes: OnOutcomes = lambda batch, outcomes: None,
    ) -> None:
        """``plan``: how batches are divided. ``timeout``: seconds for each step and for each save.

        ``on_outcomes`` receives the outcomes of a batch's updates, and may raise to end the run.
        """
        self.ranks = tuple(ranks)
        self.watch = RankWatch(self.ranks)
        self._plan = plan
        self._on_spans = on_spans
        self._on_outcomes = on_outcomes
        self._timeout = timeout

    async def supervise(self) -> None:
        """Watch the ranks until cancelled. Raises :class:`TrainerLost`."""
        await self.watch.supervise()

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        """Divide the batch, have every rank train its share, and combine the statistics."""
        plans = plan_batch(batch, self._plan, ranks=len(self.ranks))
        calls = [
            rank.train.remote(plan, [batch.groups[index].tokens for index in plan.groups])
            for rank, plan in zip(self.ranks, plans, strict=True)
        ]
        reports: list[StepReport] = await self._all(calls, f"training step {batch.step}")
        self._on_spans(tuple(span for report in reports for span in report.spans))
        self._on_outcomes(batch, reports[0].outcomes)
        empty = sum(update.total_tokens == 0 for update in plans[0].updates)  # the same on every rank
        return step_statistics(reports) | {"updates/empty": float(empty)}

    async def save(self, path: str) -> None:
        """Write the model as a Hugging Face folder."""
        await self._all([rank.save.remote(path) for rank in self.ranks], f"saving the model to {path}")

    async def snapshot(self, path: str) -> None:
        """Copy what a checkpoint in the folder ``path`` consists of to the ranks' host memory."""
        await self._all([rank.snapshot.remote(path) for rank in self.ranks], f"copying the checkpoint {path}")

    async def write_snapshot(self) -> None:
        """Write what was copied last; the ranks may be trained meanwhile."""
        await self._all([rank.write_snapshot.remote() for rank in self.ranks], "writing a checkpoint")

    async def _all(self, calls: Sequence[ray.ObjectRef[Any]], what: str) -> list[Any]:
        names = [f"trainer rank {rank}" for rank in range(len(self.ranks))]
        try:
            return await self.watch.during(all_within(calls, names, self._timeout, what, "async.train_timeout"))
        except (PipelineTimeout, WorkerDied) as error:
            raise TrainerLost(str(error)) from error


class WatchedPublisher:
    """A ``WeightPublisher`` that raises ``TrainerLost`` where another one fails because of a trainer rank."""

    def __init__(self, publisher: WeightPublisher, watch: RankWatch) -> None:
        self._publisher = publisher
        self._watch = watch

    async def send(self, version: PolicyVersion) -> Publication:
        """Read the trainer's weights."""
        try:
            return await self._watch.told(self._publisher.send(version))
        except PipelineTimeout as error:
            raise TrainerLost(str(error)) from error

    async def deliver(self, publication: Publication) -> None:
        """Return once the version is live."""
        await self._watch.told(self._publisher.deliver(publication))
