"""The pipeline's ports over Ray: what the controller sees of engines, trainer ranks and publication."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dapo_openrlhf.backend.engine import PromptTooLong
from dapo_openrlhf.backend.messages import GenerationReport, WeightAck, WeightManifest
from dapo_openrlhf.backend.policy import StepReport
from dapo_openrlhf.batch import plan_batch
from dapo_openrlhf.ports import GroupError, Publication, Sampling
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Span, TrainBatch

OnSpans = Callable[[tuple[Span, ...]], None]

_PER_TOKEN = {
    "entropy": "entropy",
    "token_probability": "token_probability",
    "clip_fraction": "clip_fraction",
    "is_weight": "is_weight/mean",
    "is_outside": "is_weight/outside",
    "rollout_kl": "rollout_kl",
}


class PipelineTimeout(RuntimeError):
    """A phase took longer than its deadline; the message names who is late, the phase and what to look at."""


class RemoteEngine:
    """One engine actor. A ``GenerationEngine``."""

    def __init__(self, actor: Any, *, index: int) -> None:
        self.actor = actor
        self._index = index
        self._serial = itertools.count()

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Sample a group; tokens and texts stay in the object store."""
        group_id = f"{prompt.id}-{next(self._serial)}"
        report_ref, tokens, texts = self.actor.generate.options(num_returns=3).remote(group_id, prompt.text, sampling)
        try:
            report: GenerationReport = await report_ref
        except asyncio.CancelledError:
            self.actor.abort.remote(group_id)
            raise
        except RayActorError as error:
            raise GroupError("engine_died", f"engine {self._index} died: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, PromptTooLong):
                message = f"prompt {prompt.id}: {error.cause}"
                raise GroupError("prompt_too_long", message, permanent=True) from error
            raise GroupError("engine_error", f"engine {self._index}: {error.cause!r}") from error
        return Generation(
            prompt_length=report.prompt_length,
            lengths=report.lengths,
            truncated=report.truncated,
            oldest_version=PolicyVersion(report.oldest_version),
            newest_version=PolicyVersion(report.newest_version),
            engine=self._index,
            tokens=tokens,
            texts=texts,
        )


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
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        self.ranks = tuple(ranks)
        self._on_spans = on_spans
        self._train_batch_size = train_batch_size
        self._max_epochs = max_epochs
        self._max_tokens = max_tokens
        self._overlong_filtering = overlong_filtering
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
        )
        calls = [
            rank.train.remote(plan, [batch.groups[index].tokens for index in plan.groups])
            for rank, plan in zip(self.ranks, plans, strict=True)
        ]
        names = [f"trainer rank {rank}" for rank in range(len(self.ranks))]
        what = f"training step {batch.step}"
        reports: list[StepReport] = await all_within(calls, names, self._timeout, what, "async.train_timeout")
        self._on_spans(tuple(span for report in reports for span in report.spans))
        return _statistics(reports, updates=len(plans[0].updates))

    async def save(self, path: str) -> None:
        """Write a Hugging Face checkpoint."""
        calls = [rank.save.remote(path) for rank in self.ranks]
        names = [f"trainer rank {rank}" for rank in range(len(self.ranks))]
        await all_within(calls, names, self._timeout, f"saving {path}", "async.train_timeout")


def _statistics(reports: Sequence[StepReport], *, updates: int) -> dict[str, float]:
    """Sums over ranks as means per trained token, and what all ranks agree on."""
    sums: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        for name, value in report.sums.items():
            sums[name] += value
    tokens = max(sums["tokens"], 1.0)
    statistics = {shown: sums[name] / tokens for name, shown in _PER_TOKEN.items()}
    statistics["is_weight/ess"] = sums["is_weight"] ** 2 / max(sums["is_weight_squared"] * tokens, 1e-12)
    statistics["loss"] = sums["loss"] / updates
    return statistics | dict(reports[0].values)


class ObjectStorePublisher:
    """Weights through Ray's object store: packed once, read by every engine. A ``WeightPublisher``."""

    def __init__(
        self,
        ranks: Sequence[Any],
        engines: Sequence[Any],
        *,
        timeout: float,
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        self._on_spans = on_spans
        self._ranks = tuple(ranks)
        self._engines = tuple(engines)
        self._timeout = timeout
        self._sent: tuple[WeightManifest, ray.ObjectRef] | None = None

    async def send(self, version: PolicyVersion) -> Publication:
        """Pack the weights; the trainer is free afterwards."""
        calls = [rank.export_weights.options(num_returns=2).remote() for rank in self._ranks]
        names = [f"trainer rank {rank}" for rank in range(len(self._ranks))]
        manifests = await all_within(
            [manifest for manifest, _ in calls],
            names,
            self._timeout,
            f"packing the weights of version {version}",
            "async.publish_timeout",
        )
        self._sent = manifests[0], calls[0][1]
        return Publication(version=version, bytes=manifests[0].bytes, checksum=manifests[0].checksum)

    async def deliver(self, publication: Publication) -> None:
        """Load them into every engine and check what each acknowledges."""
        assert self._sent is not None
        manifest, buffer = self._sent
        calls = [engine.load_weights.remote(publication.version, manifest, buffer) for engine in self._engines]
        names = [f"engine {index}" for index in range(len(self._engines))]
        what = f"loading the weights of version {publication.version}"
        acks: list[WeightAck] = await all_within(calls, names, self._timeout, what, "async.publish_timeout")
        for name, ack in zip(names, acks, strict=True):
            if (ack.version, ack.checksum) != (publication.version, publication.checksum):
                raise RuntimeError(
                    f"{name} acknowledged version {ack.version} with checksum {ack.checksum}, expected {publication}"
                )
        self._sent = None
        self._on_spans(tuple(span for ack in acks for span in ack.spans))


async def all_within(
    calls: Sequence[ray.ObjectRef], names: Sequence[str], timeout: float, what: str, setting: str
) -> list[Any]:
    """Results of remote calls, in order. Raises :class:`PipelineTimeout` naming who is late."""
    tasks = {asyncio.ensure_future(_result(call)): name for call, name in zip(calls, names, strict=True)}
    done, late = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    if late:
        for task in late:
            task.cancel()
        raise PipelineTimeout(
            f"{what}: {', '.join(sorted(tasks[task] for task in late))} did not answer within {timeout:g} s ({setting}); "
            "look at its log in Ray's session folder, and at whether its process is alive"
        )
    return [task.result() for task in tasks]


async def _result(call: ray.ObjectRef) -> Any:
    return await call
