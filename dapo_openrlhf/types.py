"""The messages that travel along the pipeline (standard library only).

One prompt's walk::

    Prompt ─▶ Generation (engine) ─▶ Score × G (reward worker) ─▶ RolloutGroup ─▶ FilterDecision (filter) ─▶ TrainBatch

Only metadata is in these messages. Token ids and log-probs stay where the engine put them; ``Generation.tokens``
and ``Generation.texts`` are opaque handles (Ray object references on the real stack) that trainers and reward
workers resolve themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

PolicyVersion = NewType("PolicyVersion", int)
"""Number of weight publications so far; 0 is the initial weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the prompt set."""

    id: int
    """Position in the prompt set, from 0; the same row keeps its id over episodes."""
    text: str
    """As the model sees it: rendered, special tokens included."""
    token_ids: tuple[int, ...] = ()
    """Of ``text``, at least one on its way to an engine, each with a row in the model's embedding."""
    label: object = field(default=None, hash=False)
    """The row's own value: what JSON can hold; None where the row need not have one."""
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The row's other columns, for rewards that want them."""
    source: str = ""
    """File and line, or row, for messages."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"prompt {self.id} ({self.source})" if self.source else f"prompt {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine returns for one prompt: G responses, described; the tokens stay behind handles."""

    prompt_length: int
    """Tokens in the prompt, at least 1."""
    lengths: tuple[int, ...]
    """Tokens of each response, the end-of-sequence token included; G entries, each at least 1."""
    truncated: tuple[bool, ...]
    """Whether each response was stopped by a limit or cut, and not by itself."""
    cut: tuple[bool, ...]
    """Whether each response was cut because its group held up a batch; those are truncated too."""
    oldest_version: PolicyVersion
    """Weights that sampled the group's first token."""
    newest_version: PolicyVersion
    """Weights that sampled the group's last token; larger than ``oldest_version`` after an update in flight."""
    engine: int
    """Index of the engine that generated it."""
    tokens: object
    """Handle to the group's ``GroupTokens``."""
    texts: object
    """Handle to the G decoded responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a reward gives one response."""

    correct: bool
    """``is_equivalent(answer, response)`` of the paper: what accuracy looks at."""
    reward: float
    """Reward before any length shaping; +1 or -1 under the rule of eq. 7."""
    score: float | None = None
    """What a user's reward calls the response's score, for dynamic sampling; None: 1 if it is right, else 0."""
    logs: Mapping[str, float] = field(default_factory=dict, hash=False)
    """What a reward of the user's wants logged (``extra_logs``)."""
    answer: str | None = field(default=None, compare=False)
    """The answer found in the response, evened out: equal for answers that are the same text or number. None: there is
    none. Two scores are equal without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One scored response."""

    length: int
    truncated: bool
    cut: bool
    """Never trained."""
    correct: bool
    reward: float
    """Reward after length shaping."""
    score: float | None = None
    """As in :class:`Score`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The G responses of one prompt: the unit of queue, filter and advantage."""

    id: int
    """Order of dispatch, from 0."""
    prompt: Prompt
    prompt_length: int
    rollouts: tuple[Rollout, ...]
    oldest_version: PolicyVersion
    newest_version: PolicyVersion
    engine: int
    tokens: object

    @property
    def accuracy(self) -> float:
        """Share of correct responses, 0 to 1."""
        return sum(rollout.correct for rollout in self.rollouts) / len(self.rollouts)

    @property
    def mean_score(self) -> float:
        """Of what dynamic sampling looks at; the accuracy, unless a user's reward gives scores of its own."""
        scores = [rollout.correct if rollout.score is None else rollout.score for rollout in self.rollouts]
        return sum(scores) / len(scores)

    @property
    def mean_reward(self) -> float:
        """Mean shaped reward."""
        return sum(rollout.reward for rollout in self.rollouts) / len(self.rollouts)

    @property
    def response_tokens(self) -> int:
        """Tokens of all responses together."""
        return sum(rollout.length for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class FilterDecision:
    """What the dynamic-sampling filter says of a group; ``reason`` is also the name of the counter it adds to."""

    keep: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """Exactly P groups, taken from the queue at one trainer version."""

    step: int
    """Rollout step, from 0."""
    version: PolicyVersion
    """The trainer's version when the batch was taken."""
    groups: tuple[RolloutGroup, ...]

    @property
    def ages(self) -> tuple[int, ...]:
        """Policy age of each group: trainer's version minus the group's oldest version."""
        return tuple(self.version - group.oldest_version for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something a worker did, on the clock that all machines share."""

    worker: str
    """``engine 0``, ``trainer 0``, ..."""
    kind: str
    """``generate``, ``load_weights``; ``fetch``, ``old_logprobs``, ``ref_logprobs``, ``values``, ``update``,
    ``update_critic``, ``export_weights``, ``save``."""
    start: float
    """Unix time, seconds."""
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start
