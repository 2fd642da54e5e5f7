"""The pipeline's ports over Ray: what the controller sees of engines, trainer ranks and publication."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from dapo_openrlhf.algorithm.choices import EstimatorName, LossAggMode
from dapo_openrlhf.backend.messages import BadPrompt, GenerationReport, GroupTexts, WeightManifest
from dapo_openrlhf.backend.trainer.actor import StepReport
from dapo_openrlhf.pipeline.agreement import FRESH_KL
from dapo_openrlhf.pipeline.bad_updates import UpdateOutcome
from dapo_openrlhf.pipeline.batch import plan_batch
from dapo_openrlhf.pipeline.ports import (
    CUT_TOO_EARLY,
    ENGINE_DIED,
    GroupError,
    NotRevived,
    PromptFault,
    Publication,
    Sampling,
)
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Span, TrainBatch

OnSpans = Callable[[tuple[Span, ...]], None]
OnOutcomes = Callable[[TrainBatch, Sequence[UpdateOutcome]], None]

ECHO_SECONDS = 2.0
"""How long after an error the other calls are listened to: when a process dies, its peers' collectives fail first."""

_PER_TOKEN = {
    "entropy": "entropy",
    "token_probability": "token_probability",
    "clip_fraction": "clip_fraction",
    "ratio": "ratio",
    "kl": "kl",
    "is_weight": "is_weight/mean",
    "is_outside": "is_weight/outside",
    "rollout_kl": "rollout_kl",
}


class PipelineTimeout(RuntimeError):
    """A phase took longer than its deadline; the message names who is late, the phase and what to look at."""


class WorkerFailed(RuntimeError):
    """An actor raised; the message names it and the phase, and ends with what it raised."""


class WorkerDied(WorkerFailed):
    """An actor's process is gone."""


class RemoteEngine:
    """One engine actor. A ``GenerationEngine``."""

    def __init__(self, start: Callable[[int], Any], *, index: int) -> None:
        """``start`` starts the actor of the engine with that index, with the weights the run began with."""
        self._start = start
        self._index = index
        self._cause = ""
        self.actor = start(index)

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """Sample a group; tokens and texts stay in the object store."""
        report_ref, tokens, texts = self.actor.generate.options(num_returns=3).remote(
            request, prompt.token_ids, sampling
        )
        try:
            report: GenerationReport | None = await report_ref
        except asyncio.CancelledError:
            self.cut(request)
            raise
        except RayActorError as error:
            raise GroupError(ENGINE_DIED, f"engine {self._index} died: {self._cause or error}") from error
        except RayTaskError as error:
            _take_note(tokens, texts)
            if isinstance(error.cause, BadPrompt):
                raise PromptFault(error.cause.reason, f"{prompt.name}: {error.cause}") from error
            raise GroupError("engine_error", f"engine {self._index}: {error.cause!r}") from error
        if report is None:
            raise GroupError(CUT_TOO_EARLY, f"prompt {prompt.id} was cut before each of its responses had a token")
        return Generation(
            prompt_length=report.prompt_length,
            lengths=report.lengths,
            truncated=report.truncated,
            cut=report.cut,
            oldest_version=PolicyVersion(report.oldest_version),
            newest_version=PolicyVersion(report.newest_version),
            engine=self._index,
            tokens=tokens,
            texts=texts,
        )

    def cut(self, request: str) -> None:
        """End a group with the tokens it has."""
        self.actor.cut.remote(request)

    def stop(self, cause: str) -> None:
        """End the actor, which may hang; its groups fail with ``cause``."""
        self._cause = cause
        ray.kill(self.actor)

    def replace(self) -> None:
        """Start a new actor in the place of this one, which may be dead, hang or fail."""
        self._cause = ""
        ray.kill(self.actor)
        self.actor = self._start(self._index)


class EngineRestarts:
    """An ``EngineReviver`` for engines whose weights never change."""

    def __init__(self, engines: Sequence[RemoteEngine], *, start_timeout: float) -> None:
        """``start_timeout``: seconds for a new engine's start."""
        self._engines = tuple(engines)
        self._start_timeout = start_timeout

    async def revive(self, engine: int) -> None:
        """Replace an engine; returns once the new one is ready. Raises ``NotRevived``."""
        self._engines[engine].replace()
        await start_again(self._engines[engine], f"engine {engine}", self._start_timeout)


async def start_again(engine: RemoteEngine, name: str, timeout: float) -> None:
    """Wait for an engine that was replaced. Raises ``NotRevived``."""
    ready = engine.actor.ready.remote()
    try:
        await all_within([ready], [name], timeout, f"starting {name} again", "async.start_timeout")
    except WorkerFailed as error:
        raise NotRevived(str(error)) from error


class ObjectStoreTexts:
    """Responses out of the object store. A ``ResponseTexts``."""

    def __init__(self, *, timeout: float) -> None:
        """``timeout``: seconds for a group's texts."""
        self._timeout = timeout

    async def fetch(self, texts: Any) -> Sequence[str]:
        """Wait for a group's texts and copy them here."""
        try:
            async with asyncio.timeout(self._timeout):
                fetched: GroupTexts = await texts
                return fetched.responses
        except TimeoutError:
            raise GroupError("texts_lost", f"a group's texts did not arrive within {self._timeout:g} s") from None
        except RayError as error:
            raise GroupError("texts_lost", f"a group's texts are lost: {error}") from error


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
        return _statistics(reports) | {"updates/empty": float(empty)}

    async def save(self, path: str) -> None:
        """Write the model as a Hugging Face folder."""
        await self._all([rank.save.remote(path) for rank in self.ranks], f"saving the model to {path}")

    async def save_state(self, path: str) -> None:
        """Write DeepSpeed's checkpoint into a folder of the folder."""
        await self._all([rank.save_state.remote(path) for rank in self.ranks], f"saving the trainer's state to {path}")

    async def _all(self, calls: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        names = [f"trainer rank {rank}" for rank in range(len(self.ranks))]
        return await all_within(calls, names, self._timeout, what, "async.train_timeout")


def _statistics(reports: Sequence[StepReport]) -> dict[str, float]:
    """Sums over ranks as means per trained token, and what all ranks agree on; only that where no update was done."""
    outcomes = reports[0].outcomes
    updates = sum(not outcome.not_finite for outcome in outcomes)
    skipped = {
        "updates/bad": float(sum(outcome.bad for outcome in outcomes)),
        "updates/overflow": float(sum(outcome.overflow for outcome in outcomes)),
    }
    if not updates:
        return skipped | dict(reports[0].values)
    sums: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        for name, value in report.sums.items():
            sums[name] += value
    tokens = max(sums["tokens"], 1.0)
    statistics = {shown: sums[name] / tokens for name, shown in _PER_TOKEN.items() if name in sums}
    statistics["is_weight/ess"] = sums["is_weight"] ** 2 / max(sums["is_weight_squared"] * tokens, 1e-12)
    statistics["loss"] = sums["loss"] / updates
    if sums["fresh_tokens"]:
        statistics[FRESH_KL] = sums["fresh_kl"] / sums["fresh_tokens"]
    if "value_loss" in sums:
        statistics["value_loss"] = sums["value_loss"] / updates
        statistics["value"] = sums["value"] / tokens
        statistics["explained_variance"] = _explained_variance(sums, tokens)
    return statistics | skipped | dict(reports[0].values)


def _explained_variance(sums: Mapping[str, float], tokens: float) -> float:
    """Share of the returns' variance that the values explain: 1 - Var(return - value) / Var(return), at most 1."""
    variance = sums["return_squared"] / tokens - (sums["return"] / tokens) ** 2
    unexplained = sums["value_error_squared"] / tokens - (sums["value_error"] / tokens) ** 2
    return 1 - unexplained / max(variance, 1e-12)


class ObjectStorePublisher:
    """Weights through Ray's object store: packed once, read by every engine. A ``WeightPublisher``.

    Also an ``EngineReviver``: the newest weights stay in the store, and a replaced engine gets them before it counts.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        engines: Sequence[RemoteEngine],
        *,
        timeout: float,
        start_timeout: float,
        on_spans: OnSpans = lambda spans: None,
    ) -> None:
        """``timeout``: seconds for each phase of a publication. ``start_timeout``: for a new engine's start."""
        self._ranks = tuple(ranks)
        self._engines = tuple(engines)
        self._in_service = set(range(len(engines)))
        self._timeout = timeout
        self._start_timeout = start_timeout
        self._on_spans = on_spans
        self._newest: tuple[Publication, WeightManifest, ray.ObjectRef] | None = None

    async def send(self, version: PolicyVersion) -> Publication:
        """Pack the weights; the trainer is free afterwards."""
        calls = [rank.export_weights.options(num_returns=2).remote() for rank in self._ranks]
        names = [f"trainer rank {rank}" for rank in range(len(self._ranks))]
        what = f"packing the weights of version {version}"
        refs = [manifest for manifest, _ in calls]
        manifest: WeightManifest = (await all_within(refs, names, self._timeout, what, "async.publish_timeout"))[0]
        publication = Publication(version=version, bytes=manifest.bytes, checksum=manifest.checksum)
        self._newest = publication, manifest, calls[0][1]
        return publication

    async def deliver(self, publication: Publication) -> None:
        """Load them into every engine in service; one that dies or is late gets the newest when it is replaced."""
        async with asyncio.TaskGroup() as tasks:
            loads = [tasks.create_task(self._load_or_stop(index)) for index in sorted(self._in_service)]
        self._on_spans(tuple(span for load in loads for span in load.result()))

    async def revive(self, engine: int) -> None:
        """Replace an engine; returns once the new one generates with the newest weights. Raises ``NotRevived``."""
        self._in_service.discard(engine)
        self._engines[engine].replace()
        await start_again(self._engines[engine], f"engine {engine}", self._start_timeout)
        try:
            loaded = None
            while self._newest is not loaded:  # a publication may begin while the last one is loaded
                loaded = self._newest
                await self._load(engine)
        except WorkerFailed as error:
            raise NotRevived(str(error)) from error
        self._in_service.add(engine)

    async def _load_or_stop(self, index: int) -> tuple[Span, ...]:
        """Load, or end an engine that hangs or cannot be reached: it must not go on with older weights."""
        actor = self._engines[index].actor
        try:
            return await self._load(index)
        except (PipelineTimeout, WorkerDied) as error:
            if self._engines[index].actor is actor:  # and no new one, which the news of this end must not hit
                self._in_service.discard(index)
                self._engines[index].stop(str(error))
            return ()

    async def _load(self, index: int) -> tuple[Span, ...]:
        """Load the newest weights into one engine, and check what it acknowledges; returns what it did before."""
        assert self._newest is not None
        publication, manifest, buffer = self._newest
        what = f"loading the weights of version {publication.version}"
        call = self._engines[index].actor.load_weights.remote(publication.version, manifest, buffer)
        (ack,) = await all_within([call], [f"engine {index}"], self._timeout, what, "async.publish_timeout")
        if (ack.version, ack.checksum) != (publication.version, publication.checksum):
            raise RuntimeError(
                f"engine {index} acknowledged version {ack.version} with checksum {ack.checksum}, expected {publication}"
            )
        return ack.spans


def _take_note(*results: ray.ObjectRef) -> None:
    """Ask for results that nobody will use: Ray prints a traceback for an error that was not asked for."""
    for result in results:
        result.future()


async def all_within(calls: Sequence[Any], names: Sequence[str], timeout: float, what: str, setting: str) -> list[Any]:
    """Results of remote calls, in order.

    Raises :class:`PipelineTimeout` naming who is late, :class:`WorkerDied` and :class:`WorkerFailed` naming who failed.
    """
    tasks = {asyncio.ensure_future(_result(call)): name for call, name in zip(calls, names, strict=True)}
    try:
        done, late = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        if late and any(task.exception() for task in done):
            more, late = await asyncio.wait(late, timeout=ECHO_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            done |= more
    finally:
        for task in tasks:
            task.cancel()
    errors = {tasks[task]: error for task in done if (error := task.exception()) is not None}
    for name, error in errors.items():
        if isinstance(error, RayActorError):
            raise WorkerDied(f"{what}: {name} died: {error}") from error
    for name, error in errors.items():
        if isinstance(error, RayTaskError):
            raise WorkerFailed(f"{what}: {name} failed: {error}") from error
        raise error
    if late:
        raise PipelineTimeout(
            f"{what}: {', '.join(sorted(tasks[task] for task in late))} did not answer within {timeout:g} s ({setting}); "
            "look at its log in Ray's session folder, and at whether its process is alive"
        )
    return [task.result() for task in tasks]


async def _result(call: ray.ObjectRef) -> Any:
    return await call
