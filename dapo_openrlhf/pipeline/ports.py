"""What the pipeline asks of the outside world. The real stack is in ``backend``, fakes are in the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dapo_openrlhf.pipeline.checkpoint import RunState
from dapo_openrlhf.types import Generation, PolicyVersion, Prompt, Score, TrainBatch

CUT_TOO_EARLY = "cut_too_early"
"""Reason of a :class:`GroupError` of a group that was cut before each of its responses had a token."""

ENGINE_DIED = "engine_died"
"""Reason of a :class:`GroupError` after which its engine answers no more."""


class GroupError(Exception):
    """One group could not be made; the run goes on.

    ``reason`` names the counter it adds to. The prompt is tried again later, unless the error is ``permanent``.
    """

    def __init__(self, reason: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.permanent = permanent


class PromptFault(GroupError):
    """The prompt itself is at fault: no engine's failure, and the prompt is dropped for good."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message, permanent=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are sampled."""

    n: int
    """G: responses of the prompt."""
    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float

    def probe(self) -> Sampling:
        """The same for a single token of a single response."""
        return replace(self, n=1, max_new_tokens=1)


class GenerationEngine(Protocol):
    """A dedicated inference engine: a rollout worker."""

    async def generate(self, request: str, prompt: Prompt, sampling: Sampling) -> Generation:
        """Sample G responses; ``request`` is a unique name. Raises :class:`GroupError`."""
        ...

    def cut(self, request: str) -> None:
        """End a request with what there is: its unfinished responses are truncated."""
        ...


class NotRevived(Exception):
    """A new engine failed before it could generate."""


class EngineReviver(Protocol):
    """Replaces engines."""

    async def revive(self, engine: int) -> None:
        """Replace a dead or sick engine; returns once the new one generates with the newest weights.

        Raises :class:`NotRevived`; it may be tried again.
        """
        ...


class RewardScorer(Protocol):
    """Scores a group's responses in other processes."""

    async def score(self, texts: object, prompt: Prompt) -> tuple[Score, ...]:
        """Score the responses behind the handle ``Generation.texts``. Raises :class:`GroupError`."""
        ...


class ResponseTexts(Protocol):
    """Brings responses to where an evaluation is written down; training never needs them there."""

    async def fetch(self, texts: object) -> Sequence[str]:
        """The responses behind the handle ``Generation.texts``. Raises :class:`GroupError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Weights on their way into the engines."""

    version: PolicyVersion
    bytes: int
    checksum: int


class PolicyTrainer(Protocol):
    """The trainer's ranks as one."""

    async def train(self, batch: TrainBatch) -> Mapping[str, float]:
        """Do the U updates of one rollout step; returns statistics under the names of ``metrics.METRICS``."""
        ...

    async def save(self, path: str) -> None:
        """Write the model into a folder, as transformers and vLLM load it."""
        ...

    async def save_state(self, path: str) -> None:
        """Write what training needs to go on, beside the model, into the same folder."""
        ...


class CheckpointStore(Protocol):
    """Where checkpoints to resume from go; see ``checkpoint.Checkpoints``."""

    def begin(self, step: int) -> str:
        """A folder for the trainer to write into."""
        ...

    async def complete(self, state: RunState) -> str:
        """The folder is written: from now on it counts. Returns its path."""
        ...


class WeightPublisher(Protocol):
    """The weight sync: carries the trainer's weights to every engine."""

    async def send(self, version: PolicyVersion) -> Publication:
        """Read the trainer's weights; when this returns the trainer may go on."""
        ...

    async def deliver(self, publication: Publication) -> None:
        """Return once every engine has acknowledged version and checksum: the version is live."""
        ...
