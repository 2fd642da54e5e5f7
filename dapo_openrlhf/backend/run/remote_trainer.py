"""What the controller sees of the trainer's ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from dapo_openrlhf.algorithm.choices import EstimatorName, LossAggMode
from dapo_openrlhf.backend.run.calls import all_within
from dapo_openrlhf.backend.run.step_statistics import step_statistics
from dapo_openrlhf.backend.trainer.actor import StepReport
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.pipeline.batch import plan_batch
from dapo_openrlhf.types import Span, TrainBatch

OnSpans = Callable[[tuple[Span, ...]], None]


OnOutcomes = Callable[[TrainBatch, Sequence[UpdateOutcome]], None]


class RemoteTrainer:
    """All trainer ranks. A ``PolicyTrainer``: one call per rank and rollout step."""

    def __init__(
        self,
        ranks: Sequence[Any],
        *,
        train_batch_size: int,
        max_epochs: int,
        max_tokens: int,
        overlong_filtering: bool,
        seed: int,
        timeout: float,
        estimator: EstimatorName = "group_norm",
        loss_agg_mode: LossAggMode = "token-mean",
        longest_response: int = 1,
        on_spans: OnSpans = lambda spans: None,
        on_outcomes: OnOutcomes = lambda batch, outcomes: None,
    ) -> None:
        """``on_outcomes`` is told what became of a batch's updates, and may raise to end the run."""
        self.ranks = tuple(ranks)
        self._on_spans = on_spans
        self._on_outcomes = on_outcomes
        self._train_batch_size = train_batch_size
        self._max_epochs = max_epochs
        self._max_tokens = max_tokens
        self._overlong_filtering = overlong_filtering
        self._estimator = estimator
        self._loss_agg_mode = loss_agg_mode
        self._longest_response = longest_response
        self._seed = seed
        self._timeout = timeout

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        """Cut the batch, run every rank's share, add up the statistics."""
        plans = plan_batch(
            batch,
            ranks=len(self.ranks),
            train_batch_size=self._train_batch_size,
            max_epochs=self._max_epochs,
            max_tokens=self._max_tokens,
            overlong_filtering=self._overlong_filtering,
            seed=self._seed,
            estimator=self._estimator,
            loss_agg_mode=self._loss_agg_mode,
            longest_response=self._longest_response,
        )
        calls = [
            rank.train.remote(plan, [batch.groups[index].tokens for index in plan.groups])
            for rank, plan in zip(self.ranks, plans, strict=True)
        ]
        reports: list[StepReport] = await self._all(calls, f"training step {batch.step}")
        self._on_spans(tuple(span for report in reports for span in report.spans))
        self._on_outcomes(batch, reports[0].outcomes)
        empty = sum(update.total_tokens == 0 for update in plans[0].updates)  # every rank's, as far as this goes
        return step_statistics(reports) | {"updates/empty": float(empty)}

    async def save(self, path: str) -> None:
        """Write the model as a Hugging Face folder."""
        await self._all([rank.save.remote(path) for rank in self.ranks], f"saving the model to {path}")

    async def save_state(self, path: str) -> None:
        """Write DeepSpeed's checkpoint into a folder of the folder."""
        await self._all([rank.save_state.remote(path) for rank in self.ranks], f"saving the trainer's state to {path}")

    async def _all(self, calls: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        names = [f"trainer rank {rank}" for rank in range(len(self.ranks))]
        return await all_within(calls, names, self._timeout, what, "async.train_timeout")
