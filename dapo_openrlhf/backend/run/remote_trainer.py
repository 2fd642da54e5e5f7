"""The controller's view of the trainer's ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from dapo_openrlhf.backend.run.calls import all_within
from dapo_openrlhf.backend.run.step_statistics import step_statistics
from dapo_openrlhf.backend.trainer.reports import StepReport
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.pipeline.batch import PlanSettings, plan_batch
from dapo_openrlhf.types import Span, TrainBatch

OnSpans = Callable[[tuple[Span, ...]], None]
OnOutcomes = Callable[[TrainBatch, Sequence[UpdateOutcome]], None]


class RemoteTrainer:
    """All trainer ranks together. A ``PolicyTrainer`` that makes one call per rank and rollout step."""

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
        self._plan = plan
        self._on_spans = on_spans
        self._on_outcomes = on_outcomes
        self._timeout = timeout

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
        return await all_within(calls, names, self._timeout, what, "async.train_timeout")
