"""Fakes of the pipeline's ports that fail when misused, and a whole run built on them.

Each fake keeps records of its own, so that tests judge the pipeline by what reached the outside world and not
by what the pipeline says of itself. A token handle is the :class:`FakeGroup` an engine made.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from dapo_openrlhf.pipeline.agreement import FRESH_KL, Agreement
from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.pipeline.conductor import Outcome, Pipeline, Training
from dapo_openrlhf.pipeline.curriculum import Difficulty
from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter, OverSampling
from dapo_openrlhf.pipeline.ending import Ending, Limits
from dapo_openrlhf.pipeline.engine_pool import EnginePool, Sampler
from dapo_openrlhf.pipeline.evaluation import Evaluation
from dapo_openrlhf.pipeline.evaluator import Evaluator, ProblemSet
from dapo_openrlhf.pipeline.event_log import EventLog
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Checkpointed,
    Evaluated,
    Event,
    GroupDispatched,
    GroupFailed,
    GroupJudged,
    GroupSurplus,
    PromptDropped,
    PublicationLive,
    SnapshotTaken,
    StepDone,
)
from dapo_openrlhf.pipeline.health import HealthLimits
from dapo_openrlhf.pipeline.lives import Carried
from dapo_openrlhf.pipeline.mixture import Drawing
from dapo_openrlhf.pipeline.ports import (
    EngineGone,
    GroupError,
    Health,
    NotRevived,
    Publication,
    Sampling,
    TrainerLost,
)
from dapo_openrlhf.pipeline.prompts import PromptState, PromptStream
from dapo_openrlhf.pipeline.restarts import RestartBudget
from dapo_openrlhf.pipeline.rollout import LengthShaping, RolloutLoop
from dapo_openrlhf.pipeline.rollout_queue import RolloutQueue
from dapo_openrlhf.pipeline.samples import SampledScorer
from dapo_openrlhf.pipeline.saving import Saver
from dapo_openrlhf.pipeline.schedule import Schedule
from dapo_openrlhf.pipeline.staleness import StalenessPolicy
from dapo_openrlhf.pipeline.stop import StopRequest
from dapo_openrlhf.pipeline.suspects import FAILS, KILLS_ENGINES
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Rollout, RolloutGroup, Score, TrainBatch, Transcript

PASS_BY_PASS = Drawing()

HANG = float("inf")
"""A latency: this group never ends by itself."""

PERMANENT = ("prompt_too_long", FAILS, KILLS_ENGINES)
"""Reasons of errors that the tests make permanent."""

DEADLY = -1.0
"""A fault: the engine dies with the group, and whatever else is in it."""

EVALUATION = 1_000_000
"""Prompt ids from here on are problems of the evaluation."""

Seconds = Callable[[], float]
E = TypeVar("E", bound=Event)


class Misuse(AssertionError):
    """The code under test broke a port's contract."""


@dataclass(eq=False, slots=True, kw_only=True)
class FakeGroup:
    """What an engine knows of one group; identity is its token handle."""

    prompt: Prompt
    engine: int
    lengths: tuple[int, ...]
    started: float
    oldest_version: int = -1
    newest_version: int = -1
    ended: float = -1.0
    end: str = "running"
    """``running``, ``made``, ``failed`` or ``cancelled``."""

    @property
    def for_training(self) -> bool:
        return self.prompt.id < EVALUATION

    @property
    def version_tokens(self) -> tuple[int, ...]:
        """The oldest version sampled one token, the newest one the others."""
        tokens, newer = sum(self.lengths), self.newest_version - self.oldest_version
        return (1, *[0] * (newer - 1), tokens - 1) if newer else (tokens,)


def prompts(count: int) -> list[Prompt]:
    """A prompt set whose labels tell which prompt they belong to."""
    return [
        Prompt(id=index, text=f"question {index}", token_ids=(1, 2, index), label=f"answer {index}")
        for index in range(count)
    ]


def problems(count: int) -> list[Prompt]:
    """Problems of an evaluation."""
    return [replace(prompt, id=EVALUATION + prompt.id) for prompt in prompts(count)]


def some_group(group_id: int, *, version: int = 0, right: Sequence[bool] = (True, False)) -> RolloutGroup:
    """A finished group for tests of the queue alone; kept by the filter unless ``right`` says otherwise."""
    return RolloutGroup(
        id=group_id,
        prompt=prompts(group_id + 1)[-1],
        prompt_length=3,
        rollouts=tuple(Rollout(length=5, truncated=False, cut=False, correct=r, reward=2.0 * r - 1.0) for r in right),
        oldest_version=PolicyVersion(version),
        newest_version=PolicyVersion(version),
        engine=0,
        tokens=object(),
    )


class FakeEngine:
    """Generates by sleeping. Weights arrive through :meth:`load` while it does.

    ``latency`` gives a group's seconds, of which it waits up to half a second for its first token. ``report_seconds`` is how
    long the news of a death takes to reach a group. ``fault``
    is asked once per group and may return the error to raise at the end, ``HANG`` or ``DEADLY``. During ``outage`` (from,
    until) the engine is dead: groups in flight at its beginning fail, later ones wait for its end.
    """

    def __init__(
        self,
        index: int = 0,
        *,
        latency: Seconds = lambda: 1.0,
        samples: int = 2,
        max_length: int = 100,
        fault: Callable[[Prompt], GroupError | float | None] = lambda prompt: None,
        outage: tuple[float, float] | None = None,
        report_seconds: Seconds = lambda: 0.0,
        seed: int = 0,
    ) -> None:
        self.index = index
        self.version = 0
        self.made: list[FakeGroup] = []
        self.named: dict[str, FakeGroup] = {}
        """By request."""
        self.running: set[FakeGroup] = set()
        self._latency = latency
        self._samples = samples
        self._max_length = max_length
        self._fault = fault
        self._outage = outage
        self._cuts: dict[str, asyncio.Event] = {}
        self.life = 0
        self.faulty: set[int] = set()
        """Lives with a fault, of which each may cost a restart."""
        self._report_seconds = report_seconds
        self._dead = asyncio.Event()
        self._hung = False
        self._steps = 0
        self._random = random.Random(f"{seed}/{index}")

    @property
    def busy(self) -> int:
        """Groups for training in flight here."""
        return sum(group.for_training for group in self.running)

    @property
    def alive(self) -> bool:
        return not self._dead.is_set()

    def die(self) -> None:
        """Groups in flight fail, and later ones at once, until :meth:`rise`."""
        self.faulty.add(self.life)
        self._dead.set()

    def hang(self) -> None:
        """Nothing ends and nothing is answered, until it is killed."""
        if self.alive:
            self.faulty.add(self.life)
            self._hung = True

    def stop(self, cause: str, *, life: int) -> bool:
        """Killed, unless it is too late for that."""
        if life == self.life:
            self.die()
        return life == self.life

    def begin(self) -> None:
        """A new process is started in the place of the old one, which is killed."""
        self._dead.set()
        self.life += 1

    def rise(self, version: int) -> None:
        """The new process is ready, with these weights."""
        if self.alive:
            raise Misuse(f"engine {self.index} is replaced while it is alive")
        self._dead = asyncio.Event()
        self._hung = False
        self.version = version

    async def takes(self, seconds: float) -> bool:
        """Whether it loads weights, or hangs for so long."""
        dead = self._dead
        if self._hung and not dead.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(dead.wait(), seconds)
            return False
        return True

    async def health(self) -> Health:
        if self._hung:
            await self._dead.wait()
        if not self.alive:
            raise EngineGone(f"engine {self.index} died")
        self._steps += 1
        return Health(doing="generating", steps_begun=self._steps, steps_ended=self._steps)

    def load(self, version: int) -> None:
        """New weights, in flight."""
        if not self.alive:
            return
        if version != self.version + 1:
            raise Misuse(f"engine {self.index} got version {version} after {self.version}")
        self.version = version

    def cut(self, request: str) -> None:
        """The rest of the group's sleep is skipped."""
        self._cuts[request].set()

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        if request in self._cuts:
            raise Misuse(f"{request} is generated twice")
        cut = self._cuts[request] = asyncio.Event()
        if sampling.n != self._samples and sampling != sampling.probe():
            raise Misuse(f"{sampling.n} samples of prompt {prompt.id} asked for, not {self._samples}")
        loop = asyncio.get_running_loop()
        group = FakeGroup(prompt=prompt, engine=self.index, lengths=self._lengths(), started=loop.time())
        if sampling != sampling.probe():
            self.made.append(group)
        self.named[request] = group
        self.running.add(group)
        try:
            await self._live_through(self._sample(group, cut))
        except BaseException as error:
            group.end = "failed" if isinstance(error, GroupError) else "cancelled"
            raise
        finally:
            group.ended = loop.time()
            self.running.remove(group)
        group.end = "made"
        return Generation(
            prompt_length=3,
            lengths=group.lengths,
            truncated=tuple(cut.is_set() or length == self._max_length for length in group.lengths),
            cut=(cut.is_set(),) * len(group.lengths),
            oldest_version=PolicyVersion(group.oldest_version),
            newest_version=PolicyVersion(group.newest_version),
            version_tokens=group.version_tokens,
            engine=self.index,
            tokens=group,
            texts=group,
        )

    async def _live_through(self, work: Coroutine[None, None, None]) -> None:
        dying = asyncio.create_task(self._dead.wait())
        working = asyncio.create_task(work)
        try:
            await asyncio.wait((dying, working), return_when=asyncio.FIRST_COMPLETED)
            if self._hung:
                await dying
            if dying.done():
                if (seconds := self._report_seconds()) > 0:
                    await asyncio.sleep(seconds)
                raise GroupError("engine_died", f"engine {self.index} died")
            working.result()
        finally:
            for task in (dying, working):
                task.cancel()
            await asyncio.gather(dying, working, return_exceptions=True)

    async def _sample(self, group: FakeGroup, cut: asyncio.Event) -> None:
        seconds, fault = self._latency(), self._fault(group.prompt)
        if fault == HANG or seconds == HANG:
            group.oldest_version = group.newest_version = self.version
            await cut.wait()
            group.newest_version = self.version
            return
        waits = min(0.1 * seconds, 0.5)
        await self._work(waits)
        group.oldest_version = self.version
        await self._work(seconds - waits, cut)
        group.newest_version = self.version
        if fault == DEADLY:
            self.die()
            await asyncio.sleep(HANG)
        if isinstance(fault, GroupError):
            raise fault

    async def _work(self, seconds: float, cut: asyncio.Event | None = None) -> None:
        now = asyncio.get_running_loop().time()
        if self._outage is not None and now + seconds > self._outage[0] and now < self._outage[1]:
            dies, back = self._outage
            if now < dies:
                await asyncio.sleep(dies - now)
                raise GroupError("engine_died", f"engine {self.index} died")
            await asyncio.sleep(back - now)
        if seconds > 0 and cut is None:
            await asyncio.sleep(seconds)
        elif cut is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(cut.wait(), seconds)

    def _lengths(self) -> tuple[int, ...]:
        return tuple(self._random.randint(1, self._max_length) for _ in range(self._samples))


def mixed(group: FakeGroup) -> tuple[bool, ...]:
    """An accuracy pattern that the filter keeps."""
    return tuple(index % 2 == 0 for index in range(len(group.lengths)))


def all_right(group: FakeGroup) -> tuple[bool, ...]:
    return (True,) * len(group.lengths)


def all_wrong(group: FakeGroup) -> tuple[bool, ...]:
    return (False,) * len(group.lengths)


def filtered(share: float, *, seed: int) -> Callable[[FakeGroup], tuple[bool, ...]]:
    """An accuracy pattern of which dynamic sampling drops about ``share``."""
    chance = random.Random(f"filter/{seed}")

    def pattern(group: FakeGroup) -> tuple[bool, ...]:
        if chance.random() < share:
            return all_right(group) if chance.random() < 0.5 else all_wrong(group)
        return mixed(group)

    return pattern


class FakeScorer:
    """Scores after ``latency`` seconds by ``pattern``; ``fault`` may return an error for a group."""

    def __init__(
        self,
        *,
        latency: Seconds = lambda: 0.0,
        pattern: Callable[[FakeGroup], Sequence[bool]] = mixed,
        fault: Callable[[FakeGroup], GroupError | None] = lambda group: None,
        answers: Callable[[FakeGroup], Sequence[str | None]] = lambda group: ("1",) * len(group.lengths),
    ) -> None:
        self._answers = answers
        self._latency = latency
        self._pattern = pattern
        self._fault = fault
        self._seen: set[FakeGroup] = set()

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        if not isinstance(texts, FakeGroup):
            raise Misuse(f"{texts!r} was made by no engine")
        if texts in self._seen:
            raise Misuse(f"a group of prompt {texts.prompt.id} is scored twice")
        if prompt != texts.prompt:
            raise Misuse(f"prompt {texts.prompt.id} is scored as prompt {prompt.id}")
        self._seen.add(texts)
        if (seconds := self._latency()) > 0:
            await asyncio.sleep(seconds)
        if (error := self._fault(texts)) is not None:
            self._seen.remove(texts)  # may be asked again
            raise error
        answers = self._answers(texts)
        return tuple(
            Score(correct=right, reward=1.0 if right else -1.0, answer=answer)
            for right, answer in zip(self._pattern(texts), answers, strict=False)
        )


class FakeTexts:
    """Responses whose texts end in ``answers``; ``fault`` may return an error for a group."""

    def __init__(
        self,
        *,
        answers: Callable[[FakeGroup], Sequence[str]] = lambda group: ("1",) * len(group.lengths),
        fault: Callable[[FakeGroup], GroupError | None] = lambda group: None,
    ) -> None:
        self._answers = answers
        self._fault = fault

    async def fetch(self, texts: object) -> Sequence[Transcript]:
        if not isinstance(texts, FakeGroup) or texts.end != "made":
            raise Misuse(f"{texts!r} was made by no engine")
        if texts.for_training:
            raise Misuse(f"texts of prompt {texts.prompt.id} leave the object store in training")
        if (error := self._fault(texts)) is not None:
            raise error
        return [Transcript(text=f"Well.\nAnswer: {answer}") for answer in self._answers(texts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One batch as it reached the trainer."""

    version: int
    groups: tuple[FakeGroup, ...]
    began: float
    ended: float
    generating: int
    """Groups for training that engines were working on when it began or ended, whichever is more."""

    @property
    def ages(self) -> tuple[int, ...]:
        """By the engines' records."""
        return tuple(self.version - group.oldest_version for group in self.groups)


class FakeTrainer:
    """Trains by sleeping. Refuses what no trainer may be given."""

    def __init__(
        self,
        *,
        batch_size: int,
        max_staleness: int,
        engines: Sequence[FakeEngine],
        seconds: Seconds = lambda: 1.0,
        fail_at: int | None = None,
        work: Callable[[TrainBatch], object] = lambda batch: None,
        version: int = 0,
        fresh_kl: Callable[[TrainBatch], float] = lambda batch: 1e-6,
        write: Callable[[str], Awaitable[object]] = lambda folder: asyncio.sleep(0.0),
    ) -> None:
        """``fail_at``: the step that ends in an error. ``work`` is called with every batch.

        ``write`` writes a checkpoint's files into a folder.

        ``fresh_kl`` is what trainer and engines differ by on responses of age 0, where a batch has any.
        """
        self._first = self.version = version
        self.batches: list[Trained] = []
        self.saved: list[tuple[int, str]] = []
        self.doing = ""
        self.snapshot_held: str | None = None
        """The folder for which a snapshot was taken and not written yet."""
        self._write = write
        self._batch_size = batch_size
        self._max_staleness = max_staleness
        self._engines = engines
        self._seconds = seconds
        self._fail_at = fail_at
        self._work = work
        self._fresh_kl = fresh_kl
        self._trained: set[FakeGroup] = set()
        self._end = asyncio.Event()
        self._hangs = False

    def die(self) -> None:
        """What it does fails at once, and so does whatever is asked of it later."""
        self._end.set()

    def hang(self) -> None:
        """What it does never ends, which is found after a minute."""
        self._hangs = True
        self._end.set()

    async def supervise(self) -> None:
        await self._end.wait()
        if self._hangs:
            await asyncio.sleep(60.0)
        raise TrainerLost("trainer rank 0 is gone")

    async def live(self, seconds: float) -> None:
        """Be at work."""
        if self._end.is_set() or seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), seconds)
                await asyncio.sleep(HANG if self._hangs else 0)
                raise TrainerLost("trainer rank 0 is gone")

    def begin(self, what: str) -> None:
        """The trainer does one thing at a time."""
        if self.doing:
            raise Misuse(f"the trainer is to be {what} while it is {self.doing}")
        self.doing = what

    def end(self) -> None:
        self.doing = ""

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        self.begin("training")
        groups = self._checked(batch)
        began = asyncio.get_running_loop().time()
        generating = self._generating()
        self._work(batch)
        await self.live(self._seconds())
        if batch.step == self._fail_at:
            raise RuntimeError(f"trainer rank 0 ran out of memory in step {batch.step}")
        self.batches.append(
            Trained(
                version=self.version,
                groups=groups,
                began=began,
                ended=asyncio.get_running_loop().time(),
                generating=max(generating, self._generating()),
            )
        )
        self.version += 1
        self.end()
        fresh = {FRESH_KL: self._fresh_kl(batch)} if 0 in batch.ages else {}
        return {"loss": 0.5, "grad_norm": 1.0, **fresh}

    def _generating(self) -> int:
        return sum(engine.busy for engine in self._engines)

    def _checked(self, batch: TrainBatch) -> tuple[FakeGroup, ...]:
        if (batch.step, batch.version) != (self._first + len(self.batches), self.version):
            raise Misuse(f"step {batch.step} at version {batch.version}, the trainer is at {self.version}")
        if len(batch.groups) != self._batch_size:
            raise Misuse(f"a batch of {len(batch.groups)} groups, not {self._batch_size}")
        handles = []
        for group in batch.groups:
            made = group.tokens
            if not isinstance(made, FakeGroup) or made.end != "made":
                raise Misuse(f"group {group.id} was not made by an engine")
            if made in self._trained:
                raise Misuse(f"group {group.id} is trained twice")
            if len({rollout.correct for rollout in group.rollouts}) == 1 and len(group.rollouts) > 1:
                raise Misuse(f"group {group.id} carries no gradient")
            if tuple(rollout.length for rollout in group.rollouts) != made.lengths:
                raise Misuse(f"group {group.id} has lengths that are not its tokens'")
            if not 0 <= self.version - made.oldest_version <= self._max_staleness:
                raise Misuse(f"group {group.id} of version {made.oldest_version} trained at {self.version}")
            self._trained.add(made)
            handles.append(made)
        return tuple(handles)

    async def save(self, path: str) -> None:
        self.begin("saving")
        self.saved.append((self.version, path))
        await self.live(0.1)
        self.end()

    async def snapshot(self, path: str) -> None:
        if self.snapshot_held is not None:
            raise Misuse(f"a snapshot for {path} while that for {self.snapshot_held} is not written")
        self.begin("copying")
        await asyncio.sleep(0.1)
        self.saved.append((self.version, path))
        self.snapshot_held = path
        self.end()

    async def write_snapshot(self) -> None:
        if self.snapshot_held is None:
            raise Misuse("there is no snapshot to write")
        await self._write(self.snapshot_held)
        self.snapshot_held = None


class FakePublisher:
    """Carries version numbers to engines, each at a time of its own within the delivery."""

    def __init__(
        self,
        *,
        trainer: FakeTrainer,
        engines: Sequence[FakeEngine],
        send_seconds: Seconds = lambda: 0.0,
        deliver_seconds: Seconds = lambda: 0.0,
        late_seconds: float = 600.0,
        fail_at: int | None = None,
        seed: int = 0,
        version: int = 0,
    ) -> None:
        """``fail_at``: the version whose delivery ends in an error. After ``late_seconds`` an engine that hangs is late."""
        self._first = version
        self.sent: list[float] = []
        """When the sending of version 1, 2, ... began."""
        self.delivered: list[tuple[float, float]] = []
        """When its delivery began and ended."""
        self._trainer = trainer
        self._engines = engines
        self._send_seconds = send_seconds
        self._deliver_seconds = deliver_seconds
        self._late_seconds = late_seconds
        self._fail_at = fail_at
        self._random = random.Random(f"publisher/{seed}")
        self._busy = False

    @property
    def newest(self) -> int:
        return self._first + len(self.sent)

    async def send(self, version: PolicyVersion) -> Publication:
        if version != self.newest + 1:
            raise Misuse(f"version {version} sent after {self.newest}")
        if version != self._trainer.version:
            raise Misuse(f"version {version} sent while the trainer is at {self._trainer.version}")
        if len(self.delivered) != len(self.sent):
            raise Misuse(f"version {version} sent before {len(self.sent)} is delivered")
        self._trainer.begin("sending")
        self.sent.append(asyncio.get_running_loop().time())
        await self._trainer.live(self._send_seconds())
        self._trainer.end()
        return Publication(version=version, bytes=8, checksum=version)

    async def deliver(self, publication: Publication) -> None:
        version = publication.version
        if self._busy or version != self._first + len(self.delivered) + 1 or publication.checksum != version:
            raise Misuse(f"{publication} delivered after {len(self.delivered)} versions")
        self._busy = True
        began = asyncio.get_running_loop().time()
        seconds = self._deliver_seconds()
        await asyncio.gather(*(self._load(engine, version, seconds) for engine in self._engines))
        if version == self._fail_at:
            raise RuntimeError(f"engine 0 did not answer with version {version}")
        self.delivered.append((began, asyncio.get_running_loop().time()))
        self._busy = False

    async def _load(self, engine: FakeEngine, version: int, seconds: float) -> None:
        """As a carrier does: who does not take the weights is stopped, unless somebody else is there by then."""
        life, loads_after = engine.life, seconds * self._random.random()
        if seconds > 0:
            await asyncio.sleep(loads_after)
        if not await engine.takes(self._late_seconds):
            engine.stop(f"engine {engine.index} did not take version {version}", life=life)
        elif engine.life == life and engine.version < version:
            engine.load(version)
        if seconds > 0:
            await asyncio.sleep(seconds - loads_after)


class FakeReviver:
    """Replaces dead engines after ``seconds``; the new ones have the newest weights.

    ``inf`` seconds: the start fails; fewer than 0: it fails after as many.
    """

    def __init__(self, engines: Sequence[FakeEngine], publisher: FakePublisher, *, seconds: Seconds) -> None:
        self._engines = engines
        self._publisher = publisher
        self._seconds = seconds

    async def revive(self, engine: int) -> None:
        self._engines[engine].begin()
        if (seconds := self._seconds()) == HANG:
            raise self._did_not_start(engine)
        await asyncio.sleep(abs(seconds))
        if seconds < 0:
            raise self._did_not_start(engine)
        self._engines[engine].rise(self._publisher.newest)

    def _did_not_start(self, engine: int) -> NotRevived:
        self._engines[engine].faulty.add(self._engines[engine].life)
        return NotRevived(f"engine {engine} did not start")


class FakeCheckpoints:
    """Remembers states."""

    def __init__(self) -> None:
        self.states: list[RunState] = []
        self.discarded: list[int] = []
        self.evaluations: dict[int, Mapping[str, float]] = {}
        self._writing: str | None = None

    def begin(self, step: int) -> str:
        self._writing = f"checkpoint-{step}"
        return self._writing

    def evaluated(self, step: int, estimates: Mapping[str, float]) -> None:
        self.evaluations[step] = estimates

    def discard(self, step: int) -> None:
        if self._writing != f"checkpoint-{step}":
            raise Misuse(f"the checkpoint of step {step} is discarded while {self._writing} is written")
        self.discarded.append(step)

    async def complete(self, state: RunState) -> str:
        if self._writing != f"checkpoint-{state.step}":
            raise Misuse(f"the checkpoint of step {state.step} ends while {self._writing} is written")
        self.states.append(state)
        return self._writing


@dataclass(kw_only=True)
class World:
    """A whole run on fakes; build it with :func:`build` inside a running loop."""

    engines: Sequence[FakeEngine]
    scorer: FakeScorer
    trainer: FakeTrainer
    publisher: FakePublisher
    queue: RolloutQueue
    rollouts: RolloutLoop
    log: EventLog
    pipeline: Pipeline
    checkpoints: FakeCheckpoints
    on_step: Callable[[int], None]
    on_evaluation: Callable[[int, Evaluation], None]
    events: list[tuple[float, Event]] = field(default_factory=list)

    def of(self, kind: type[E]) -> list[tuple[float, E]]:
        """Times and events of one kind."""
        return [(time, event) for time, event in self.events if isinstance(event, kind)]

    def prompt_of(self, group: int) -> int:
        """The prompt of a group that was dispatched."""
        return next(event.prompt for _, event in self.of(GroupDispatched) if event.group == group)

    async def run(self, stop: StopRequest | None = None) -> Outcome:
        self.log.listen(self._tell)
        return await self.pipeline.run(stop)

    def _tell(self, event: Event) -> None:
        match event:
            case StepDone():
                self.on_step(event.step)
            case Evaluated():
                assert event.measured is not None
                self.on_evaluation(event.step, event.measured.first)


def build(
    *,
    batch_size: int = 2,
    max_staleness: int = 1,
    steps: int = 4,
    samples: int = 2,
    prompt_count: int = 1000,
    drawing: Drawing = PASS_BY_PASS,
    limits: Limits | None = None,
    engines: Sequence[FakeEngine] | None = None,
    scorer: FakeScorer | None = None,
    train_seconds: Seconds = lambda: 1.0,
    send_seconds: Seconds = lambda: 0.0,
    deliver_seconds: Seconds = lambda: 0.0,
    late_seconds: float = 600.0,
    train_fails_at: int | None = None,
    deliver_fails_at: int | None = None,
    work: Callable[[TrainBatch], object] = lambda batch: None,
    fresh_kl: Callable[[TrainBatch], float] = lambda batch: 1e-6,
    write: Callable[[str], Awaitable[object]] = lambda folder: asyncio.sleep(0.0),
    problem_count: int = 0,
    eval_steps: int = -1,
    save_steps: int = -1,
    max_filtered_batches: int = 20,
    generate_timeout: float = 1000.0,
    stall_timeout: float = 1100.0,
    over_sampling: float | None = 1.0,
    cut_late: bool = False,
    revive_seconds: Seconds | None = None,
    max_restarts: int = 1000,
    restarts: Sequence[RestartBudget] | None = None,
    health: HealthLimits | None = None,
    state: RunState | None = None,
    carried: Carried | None = None,
    checkpoints: FakeCheckpoints | None = None,
    checked: bool = True,
    seed: int = 0,
    log: EventLog | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    on_evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None,
) -> World:
    """Connect fakes and loops. ``checked``: events are kept, and the ledger is checked at each of them."""
    if engines is None:
        engines = [FakeEngine(samples=samples)]
    scorer = scorer or FakeScorer()
    log = log or EventLog(None, clock=asyncio.get_running_loop().time)
    start = state.step if state else 0
    trainer = FakeTrainer(
        batch_size=batch_size,
        max_staleness=max_staleness,
        engines=engines,
        seconds=train_seconds,
        fail_at=train_fails_at,
        fresh_kl=fresh_kl,
        write=write,
        work=work,
        version=start,
    )
    publisher = FakePublisher(
        trainer=trainer,
        engines=engines,
        send_seconds=send_seconds,
        deliver_seconds=deliver_seconds,
        late_seconds=late_seconds,
        fail_at=deliver_fails_at,
        seed=seed,
        version=start,
    )
    for engine in engines if state or carried else ():
        engine.version = start
    pool = EnginePool(
        engines,
        reviver=FakeReviver(engines, publisher, seconds=revive_seconds) if revive_seconds else None,
        restarts=restarts or [RestartBudget(max_restarts) for _ in engines],
        health=health,
        on_event=log.emit,
    )
    queue = RolloutQueue(
        policy=StalenessPolicy(batch_size=batch_size, max_staleness=max_staleness, version=start),
        group_filter=GroupFilter(enabled=True),
        over_sampling=OverSampling(factor=over_sampling, window=2 * batch_size),
        max_filtered_batches=max_filtered_batches,
        stall_timeout=stall_timeout,
        ledger=carried.ledger if carried else None,
    )
    sampler = Sampler(
        engines=pool,
        sampling=Sampling(n=samples, max_new_tokens=100, temperature=1.0, top_p=1.0),
        timeout=generate_timeout,
    )
    rollouts = RolloutLoop(
        prompts=PromptStream(prompts(prompt_count), seed=seed, drawing=drawing, state=state.prompts if state else None),
        sampler=sampler,
        scorer=SampledScorer(scorer, texts=FakeTexts(), per_step=0, log=log),
        queue=queue,
        shaping=LengthShaping(max_length=100, buffer_length=20, factor=1.0),
        cut_late=cut_late,
        log=log,
    )
    evaluator = None
    if problem_count:
        evaluator = Evaluator(
            {"": ProblemSet(problems=problems(problem_count), sampler=sampler)},
            scorer=scorer,
            texts=FakeTexts(),
            responses_at_once=problem_count * samples,
        )
    checkpoints = checkpoints or FakeCheckpoints()
    pipeline = Pipeline(
        engines=pool,
        rollouts=rollouts,
        training=Training(trainer=trainer, publisher=publisher, agreement=Agreement(limit=1e-3, data_type="fp32")),
        evaluator=evaluator,
        saver=Saver(trainer=trainer, rollouts=rollouts, checkpoints=checkpoints, model_path="model", log=log),
        schedule=Schedule(
            max_steps=steps,
            eval_steps=eval_steps,
            save_steps=save_steps,
            first_step=start,
            ending=Ending(limits or Limits()),
            evaluates_first=carried is None or carried.evaluates_first,
        ),
        log=log,
    )
    world = World(
        engines=engines,
        scorer=scorer,
        trainer=trainer,
        publisher=publisher,
        queue=queue,
        rollouts=rollouts,
        log=log,
        pipeline=pipeline,
        checkpoints=checkpoints,
        on_step=on_step,
        on_evaluation=on_evaluation,
    )

    outstanding = Outstanding(state.prompts if state else None)
    snapshots: dict[int, PromptState] = {}

    def record(event: Event) -> None:
        world.events.append((log.now(), event))
        queue.counters()  # raises unless they balance
        outstanding.add(event)
        if isinstance(event, GroupJudged | BatchTaken):
            outstanding.check(rollouts.prompt_state())
        elif isinstance(event, SnapshotTaken):
            snapshots[event.step] = rollouts.prompt_state()
            outstanding.check(snapshots[event.step])
        elif isinstance(event, Checkpointed) and event.path != "model":
            assert checkpoints.states[-1] == RunState(step=event.step, prompts=snapshots[event.step])

    if checked:
        log.listen(record)
    return world


def fates(world: World, *, batch_size: int, slots: int) -> dict[int, str]:
    """Replays the events: where every group ended. Fails on a group in two places, or on too many at once."""
    fate: dict[int, str] = {}
    batches: deque[tuple[int, ...]] = deque()  # taken, successor not live yet
    for _, event in world.events:
        match event:
            case GroupDispatched():
                assert event.group not in fate, f"group {event.group} dispatched twice"
                fate[event.group] = "in flight"
            case GroupFailed():
                assert fate[event.group] == "in flight"
                fate[event.group] = "failed"
            case GroupJudged():
                assert fate[event.group] == "in flight"
                fate[event.group] = "ready" if event.keep else "dropped"
            case GroupSurplus():
                assert fate[event.group] in ("in flight", "ready")
                fate[event.group] = "surplus"
            case BatchTaken():
                assert len(set(event.groups)) == len(event.groups) == batch_size
                for group in event.groups:
                    assert fate[group] == "ready"
                    fate[group] = "training"
                batches.append(event.groups)
            case PublicationLive():
                for group in batches.popleft():
                    fate[group] = "trained"
        held = sum(place in ("in flight", "ready", "training") for place in fate.values())
        assert held <= slots, f"{held} groups hold {slots} slots after {event}"
    return fate


class Outstanding:
    """By the events: prompts that were drawn, and neither trained nor dropped. A checkpoint at any moment has each once."""

    def __init__(self, state: PromptState | None) -> None:
        self._prompt_of: dict[int, int] = {}
        self._returned: Counter[int] = Counter(state.returned if state else ())
        self._begun: Counter[int] = Counter()
        self._dropped = set(state.dropped if state else ())
        self._drawn = state.drawn if state else 0

    def add(self, event: Event) -> None:
        match event:
            case GroupDispatched():
                self._prompt_of[event.group] = event.prompt
                self._begun[event.prompt] += 1
                if self._returned.total():  # they come first
                    self._returned[event.prompt] -= 1
                else:
                    self._drawn += 1
            case GroupFailed():
                self._end(event.group, returned=event.reason not in PERMANENT)
            case PromptDropped():
                self._dropped.add(event.prompt)
                del self._returned[event.prompt]
            case GroupSurplus():
                self._end(event.group, returned=True)
            case GroupJudged() if not event.keep:
                self._end(event.group, returned=False)
            case BatchTaken():
                for group in event.groups:
                    self._end(group, returned=False)

    def check(self, state: PromptState) -> None:
        expected = Counter(
            {prompt: n for prompt, n in (self._returned + self._begun).items() if prompt not in self._dropped}
        )
        assert set(state.dropped) == self._dropped
        assert Counter(state.returned) == expected, f"a checkpoint has prompts {state.returned}, not {expected}"
        assert state.drawn == self._drawn or self._dropped  # those that were skipped were drawn too

    def _end(self, group: int, *, returned: bool) -> None:
        prompt = self._prompt_of.pop(group)
        self._begun[prompt] -= 1
        self._returned[prompt] += returned and prompt not in self._dropped


def check_prompts(
    world: World,
    *,
    permanent: Callable[[str], bool],
    prompt_count: int,
    seed: int,
    state: PromptState | None = None,
    drawing: Drawing = PASS_BY_PASS,
) -> None:
    """Replays the events: every prompt is the one given back that waits longest, or the next one drawn."""
    everything = prompts(prompt_count)
    stream = PromptStream(everything, seed=seed, drawing=drawing, state=state and replace(state, returned=()))
    fresh: Iterator[Prompt] = (stream.next().prompt for _ in itertools.count())
    returned: deque[int] = deque(state.returned if state else ())
    prompt_of: dict[int, int] = {}
    dropped = set(state.dropped if state else ())
    for _, event in world.events:
        if isinstance(event, GroupDispatched):
            expected = next(p for p in _drain(returned, fresh) if p not in dropped)
            assert event.prompt == expected, f"group {event.group} got prompt {event.prompt}, not {expected}"
            prompt_of[event.group] = event.prompt
        elif isinstance(event, GroupJudged):
            stream.learn(everything[prompt_of[event.group]], event.accuracy, drawing_responses(drawing))
        elif isinstance(event, PromptDropped):
            dropped.add(event.prompt)
            stream.drop(everything[event.prompt], "at fault")
        elif isinstance(event, GroupSurplus) or (isinstance(event, GroupFailed) and not permanent(event.reason)):
            returned.append(prompt_of[event.group])


def _drain(returned: deque[int], fresh: Iterator[Prompt]) -> Iterator[int]:
    while True:
        yield returned.popleft() if returned else next(fresh).id


def by_difficulty(prompt_count: int, *, batch_size: int, samples: int = 2) -> Drawing:
    """A curriculum over prompts of five lengths."""
    lengths = [prompt % 5 for prompt in range(prompt_count)]
    return Drawing(difficulty=Difficulty(batch_size=batch_size, responses=samples, lengths=lengths))


def drawing_responses(drawing: Drawing) -> int:
    return drawing.difficulty.responses if drawing.difficulty else 1
