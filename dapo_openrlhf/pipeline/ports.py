"""The interfaces that the pipeline needs. ``backend`` implements them on the real stack, the tests have fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Score, TrainBatch, Transcript

CUT_TOO_EARLY = "cut_too_early"
"""Reason of a :class:`GroupError` about a group that was cut before each of its responses had a token."""

ENGINE_DIED = "engine_died"
"""Reason of a :class:`GroupError` after which the engine no longer answers."""


class GroupError(Exception):
    """One group could not be generated or scored; the run goes on.

    ``reason`` names the counter it adds to. The prompt is tried again later, unless the error is ``permanent``.
    """

    def __init__(self, reason: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.permanent = permanent


class PromptFault(GroupError):
    """The prompt itself is at fault, not an engine, and is dropped for good."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, permanent=True)


class EnvironmentFault(GroupError):
    """An environment raised, hung or died, and no engine is at fault.

    ``blameless``: neither is the prompt, whose environment was in a process that another one brought down.
    """

    def __init__(self, reason: str, message: str, *, blameless: bool = False) -> None:
        super().__init__(reason, message)
        self.blameless = blameless


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are sampled."""

    n: int
    """G: number of responses to the prompt."""
    max_new_tokens: int
    temperature: float
    """Sampling temperature; 0 is greedy."""
    top_p: float
    """Smallest share of the probability that the likeliest tokens must have to be sampled from; 1 takes all."""
    top_k: int = 0
    """Number of likeliest tokens that are sampled from; 0 takes all."""
    min_p: float = 0.0
    """Least probability of a token that is sampled, as a share of the likeliest one's."""
    kept: bool = False
    """Whether to return the tokens among which each token was drawn, which the engine must be able to."""
    seed: int | None = None
    """Seed of the first response, from 0 to 2^62; each further one has the next number. With None the engine draws on."""

    def probe(self) -> Sampling:
        """The same sampling for a single token of a single response."""
        return replace(self, n=1, max_new_tokens=1)

    def of_response(self, index: int) -> Sampling:
        """The same sampling with the seed of the response at an index from 0."""
        return self if self.seed is None else replace(self, seed=self.seed + index)


class EngineGone(Exception):
    """An engine's process is gone; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """An engine's answer to the question whether it works."""

    doing: str
    """In words for the user."""
    steps_begun: int
    """Number of steps of generation that the engine has begun since it was started."""
    steps_ended: int
    """Number of these that have ended: as many, unless a step is running."""


class GenerationEngine(Protocol):
    """A dedicated inference engine: a rollout worker."""

    @property
    def life(self) -> int:
        """How often the engine was started anew.

        A failure belongs to the life in which the work was begun, and says nothing about a later one.
        """
        ...

    async def health(self) -> Health:
        """How the engine does; it answers even while it computes. Raises :class:`EngineGone`."""
        ...

    def stop(self, cause: str, *, life: int) -> bool:
        """End the engine's process, whose work then fails with ``cause``; nothing happens if that life is over.

        Returns whether it was not over.
        """
        ...

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """Sample G responses; ``request`` is a unique name. Raises :class:`GroupError`."""
        ...

    def cut(self, request: str) -> None:
        """End a request with the tokens so far: its unfinished responses are truncated."""
        ...


class NotRevived(Exception):
    """A new engine failed before it could generate."""


class EngineReviver(Protocol):
    """Replaces engines."""

    async def revive(self, engine: int) -> None:
        """Replace a dead, hanging or sick engine; returns once the new one generates with the newest weights.

        Every attempt begins a new life of the engine. Raises :class:`NotRevived`; it may be tried again.
        """
        ...


class RewardScorer(Protocol):
    """Scores a group's responses in other processes."""

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses behind the handle ``Generation.texts``. Raises :class:`GroupError`."""
        ...


class GroupScorer(Protocol):
    """Says how good each response of a group is."""

    async def score(self, generation: Generation, prompt: Prompt) -> tuple[Score, ...]:
        """The scores that an environment has given, or else those of rewards. Raises :class:`GroupError`."""
        ...


class ResponseTexts(Protocol):
    """Fetches the texts of responses for the files of an evaluation; training does not need it."""

    async def fetch(self, texts: object) -> Sequence[Transcript]:
        """The responses behind the handle ``Generation.texts``. Raises :class:`GroupError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Weights on their way into the engines."""

    version: PolicyVersion
    bytes: int
    checksum: int


class TrainerLost(RuntimeError):
    """A process of the trainer has died or hangs, as the message says; a new trainer can go on from a checkpoint."""


class PolicyTrainer(Protocol):
    """All ranks of the trainer behind one interface. Every method may raise :class:`TrainerLost`."""

    async def supervise(self) -> None:
        """Watch the trainer until cancelled, also while it does nothing. Raises :class:`TrainerLost`."""
        ...

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        """Do the U updates of one rollout step; returns statistics under the names of ``metrics.METRICS``."""
        ...

    async def save(self, path: str) -> None:
        """Write the model into a folder, as transformers and vLLM load it."""
        ...

    async def snapshot(self, path: str) -> None:
        """Copy all that a checkpoint in this folder consists of; once this returns, training may go on."""
        ...

    async def write_snapshot(self) -> None:
        """Write the newest snapshot into its folder, which may take as long as some steps of training."""
        ...


class CheckpointStore(Protocol):
    """The place for checkpoints to resume from; see ``checkpoint.Checkpoints``."""

    def begin(self, step: int) -> str:
        """Make a folder for the trainer to write into."""
        ...

    def discard(self, step: int) -> None:
        """Remove a folder that could not be written."""
        ...

    def evaluated(self, step: int, estimates: Mapping[str, float]) -> None:
        """Take note of what was measured of the weights after ``step`` steps."""
        ...

    async def complete(self, state: RunState) -> str:
        """Make the folder that the trainer has written count as a checkpoint. Returns its path."""
        ...


class WeightPublisher(Protocol):
    """The weight sync: carries the trainer's weights to every engine."""

    async def send(self, version: PolicyVersion) -> Publication:
        """Read the trainer's weights; once this returns, the trainer may change them."""
        ...

    async def deliver(self, publication: Publication) -> None:
        """Return once every engine has acknowledged version and checksum: the version is live."""
        ...
