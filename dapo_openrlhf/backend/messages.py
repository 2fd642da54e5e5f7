"""Messages between actors and the controller, besides the pipeline's own (numpy and standard library)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dapo_openrlhf.backend.kept_tokens import KeptTokens
from dapo_openrlhf.types import Generation, PolicyVersion, Score, Segment, Span


class BadPrompt(ValueError):
    """The prompt itself is at fault and would fail in any engine. ``reason`` names the counter that is increased."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both arguments, so that the error survives pickling
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class IncompleteWeights(RuntimeError):
    """A publication did not replace all of an engine's weights, or part of it was not loaded anywhere."""


class TransferAborted(RuntimeError):
    """A transfer between processes was given up before its end; the message says why. It may be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRuns:
    """Which weights sampled each of N tokens, as R runs of neighbouring tokens that one version sampled."""

    versions: NDArray[np.int32]
    """[R] version of each run; two neighbours may have the same one."""
    ends: NDArray[np.int64]
    """[R] end of each run: run i ends before token ``ends[i]``, the last one before token N. Each has a token."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[R] number of tokens of each run."""
        return np.diff(self.ends, prepend=0)

    def per_token(self) -> NDArray[np.int32]:
        """[N] version of each token."""
        return np.repeat(self.versions, self.lengths)

    def tokens_of_versions(self) -> tuple[int, ...]:
        """Number of tokens of each version, from the lowest to the highest."""
        oldest = self.versions.min()
        return tuple(map(int, np.bincount(self.versions - oldest, weights=self.lengths)))

    def part(self, start: int, end: int) -> VersionRuns:
        """The runs of tokens ``[start, end)``, of which there is at least one."""
        first, last = np.searchsorted(self.ends, [start + 1, end])
        runs = slice(first, last + 1)
        return VersionRuns(versions=self.versions[runs], ends=np.minimum(self.ends[runs], end) - start)


def one_version(version: int, tokens: int) -> VersionRuns:
    """The runs of ``tokens`` tokens, at least one, that the same weights sampled."""
    return VersionRuns(versions=np.asarray([version], np.int32), ends=np.asarray([tokens]))


def joined(parts: Sequence[VersionRuns]) -> VersionRuns:
    """The runs of the tokens of all parts, at least one, one after the other."""
    starts = accumulate((int(part.ends[-1]) for part in parts), initial=0)
    return VersionRuns(
        versions=np.concatenate([part.versions for part in parts]),
        ends=np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=False)]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """The M tokens that an environment put before, between and after the actions of one rollout, as S runs."""

    ids: NDArray[np.int32]
    """[M] token ids, run after run."""
    ends: NDArray[np.int64]
    """[S] end of each run: run i ends before token ``ends[i]``, the last one before token M. Each has a token."""
    after: NDArray[np.int64]
    """[S] number of the rollout's action tokens that stand before each run, ascending."""

    @property
    def places(self) -> NDArray[np.int64]:
        """[M] for each token the number of action tokens before it."""
        return np.repeat(self.after, np.diff(self.ends, prepend=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTokens:
    """The tokens of one group, as flat arrays: N is the number of response tokens of all G responses.

    Where an environment answers, response tokens are those of actions, which the policy has sampled. What stands
    between them is in :attr:`observations`, and only :meth:`context` puts the two together.
    """

    prompt_ids: NDArray[np.int32]
    """[prompt_length] token ids with which every response's context begins."""
    response_ids: NDArray[np.int32]
    """[N] token ids, response after response."""
    rollout_logprobs: NDArray[np.float32]
    """[N] log-probabilities of the sampled tokens, under the weights and temperature that sampled them."""
    offsets: NDArray[np.int64]
    """[G + 1] offsets: response i is ``[offsets[i], offsets[i + 1])``."""
    versions: VersionRuns
    """Which weights sampled each of the N tokens."""
    kept: KeptTokens | None = None
    """The tokens among which each of the N tokens was drawn; None if that was the whole vocabulary."""
    observations: tuple[Observations, ...] = ()
    """[G] what an environment added to each response; empty without an environment."""

    def context(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All token ids of one response with its prompt, and the positions of the response tokens among them."""
        ids, begin = self.response_ids[self.offsets[index] : self.offsets[index + 1]], len(self.prompt_ids)
        positions = np.arange(begin, begin + len(ids))
        if self.observations:
            observed = self.observations[index]
            places = observed.places
            positions += np.searchsorted(places, np.arange(len(ids)), side="right")
            ids = np.insert(ids, places, observed.ids)
        return np.concatenate([self.prompt_ids, ids]), positions

    def response(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Token ids and log-probabilities of one response."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.response_ids[span], self.rollout_logprobs[span]

    def response_kept(self, index: int) -> KeptTokens | None:
        """The tokens among which each token of one response was drawn."""
        return self.kept and self.kept.part(int(self.offsets[index]), int(self.offsets[index + 1]))

    def response_versions(self, index: int) -> VersionRuns:
        """Which weights sampled each token of one response."""
        return self.versions.part(int(self.offsets[index]), int(self.offsets[index + 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTexts:
    """The texts of one group."""

    responses: tuple[str, ...]
    """The responses without the tokens that end or pad them."""
    queries: tuple[str, ...] = ()
    """Prompt and response together, special tokens included; empty if no reward reads them."""
    segments: tuple[tuple[Segment, ...], ...] = ()
    """What policy and environment have written in turn, for each response; empty without an environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The absolute difference between two sets of log-probabilities of the same tokens."""

    mean: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a trainer's log-probabilities are from those of its model's own forward pass and of the engines."""

    architecture: str
    eps: float
    """The distance from 1 to the next larger number in the data type of the computation."""
    packed: Difference
    """Difference between the trainer, which packs sequences, and the model's own forward pass, one sequence at a
    time."""
    rounding: Difference
    """Difference between that forward pass and the same pass with one more rounding error in each linear layer."""
    engines: tuple[Difference, ...]
    """Difference between the trainer and each engine, on the tokens that the engine sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationReport:
    """An engine's answer about one group, without the tokens. The fields are those of ``types.Generation``."""

    prompt_length: int
    lengths: tuple[int, ...]
    truncated: tuple[bool, ...]
    cut: tuple[bool, ...]
    oldest_version: int
    newest_version: int
    version_tokens: tuple[int, ...]
    cached: tuple[int, ...] = ()
    """How many tokens of the prompt were in the prefix cache when each response began."""
    observed: tuple[int, ...] = ()
    scores: tuple[Score, ...] | None = None

    def generation(self, *, engine: int, tokens: object, texts: object) -> Generation:
        """The same as the pipeline's message, with the engine's index and handles to what the engine made."""
        return Generation(
            prompt_length=self.prompt_length,
            lengths=self.lengths,
            truncated=self.truncated,
            cut=self.cut,
            oldest_version=PolicyVersion(self.oldest_version),
            newest_version=PolicyVersion(self.newest_version),
            version_tokens=self.version_tokens,
            engine=engine,
            tokens=tokens,
            texts=texts,
            observed=self.observed,
            scores=self.scores,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """The tensors of a publication, in the order in which they travel."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    """Names of torch dtypes, such as ``bfloat16``."""
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    """Size of each tensor in bytes."""

    @property
    def bytes(self) -> int:
        """Size of all tensors together, in bytes."""
        return sum(self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and how a transfer group is formed: one sender, a trainer rank, and its receivers, engines' workers."""

    kind: Literal["gloo", "nccl", "ipc", "shared"]
    """The communicator. ``shared`` is ``ipc`` in host memory."""
    address: str
    port: int
    """Address and port of the controller's store."""
    generation: int
    """Number of the group, which no other group of a run has."""
    timeout: float
    """Seconds for joining, and for each wait of a transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedWeights:
    """What a rank says of weights that it has put into the object store, bucket by bucket."""

    version: int
    """Number of rollout steps that these weights have been trained for: the version that they have or will have."""
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAck:
    """An engine's acknowledgement that it now generates with a version."""

    version: int
    checksum: int
    """The checksum of what the engine loaded."""
    spans: tuple[Span, ...]
    """The engine's spans since its last acknowledgement; the last span is this loading."""
