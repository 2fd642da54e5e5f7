"""The messages that travel along the pipeline (standard library only).

One prompt's walk::

    Prompt ─▶ Generation (engine) ─▶ Score × G (reward worker) ─▶ RolloutGroup ─▶ FilterDecision (filter) ─▶ TrainBatch

Only metadata is in these messages. Token ids and log-probs stay where the engine put them; ``Generation.tokens``
and ``Generation.texts`` are opaque handles (Ray object references on the real stack) that trainers and reward
workers resolve themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType

PolicyVersion = NewType("PolicyVersion", int)
"""Number of weight publications so far; 0 is the initial weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the prompt set."""

    id: int
    """Position in the prompt set, from 0; the same row keeps its id over episodes."""
    text: str
    """The prompt as the model sees it: rendered, special tokens included."""
    token_ids: tuple[int, ...] = ()
    """Token ids of ``text``, each with a row in the model's embedding; at least one in a prompt for an engine."""
    label: object = field(default=None, hash=False)
    """The label of the row, a value that JSON can hold; None where the row needs none."""
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The row's other columns, for rewards that ask for them."""
    source: str = ""
    """File and line, or row, as messages name them."""

    @property
    def name(self) -> str:
        """The name that messages use for the prompt."""
        return f"prompt {self.id} ({self.source})" if self.source else f"prompt {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine returns for one prompt: the metadata of G responses; their tokens stay behind handles."""

    prompt_length: int
    """Number of tokens with which all contexts begin: those of the prompt, at least 1. An environment that begins each
    rollout in its own way may leave fewer."""
    lengths: tuple[int, ...]
    """Number of tokens in each response, the end-of-sequence token included; G entries, each at least 1. Where an
    environment answers, the tokens of all actions, and none of an observation."""
    truncated: tuple[bool, ...]
    """Whether each response was stopped by a limit or was cut, and did not end by itself."""
    cut: tuple[bool, ...]
    """Whether each response was cut because its group held up a batch; such responses count as truncated too."""
    oldest_version: PolicyVersion
    """Lowest version of the weights that sampled the group's tokens."""
    newest_version: PolicyVersion
    """Highest version of the weights that sampled the group's tokens; larger than ``oldest_version`` when new weights
    arrived during generation."""
    version_tokens: tuple[int, ...]
    """Number of response tokens that each version sampled, from ``oldest_version`` to ``newest_version``."""
    engine: int
    """Index of the engine that generated the group."""
    tokens: object
    """Handle to the group's ``GroupTokens``."""
    texts: object
    """Handle to the G decoded responses."""
    observed: tuple[int, ...] = ()
    """Number of tokens that an environment put into each context; empty without an environment."""
    scores: tuple[Score, ...] | None = None
    """What an environment gave for each rollout; None where rewards judge the texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a rollout: what the environment, or the policy, has written without the other."""

    kind: Literal["observation", "action"]
    text: str
    tokens: int
    """Number of its tokens, the one that ended an action included."""
    reward: float | None = None
    """The reward that followed an action; None if none did, and for observations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was written in one rollout."""

    text: str
    """All of it, without the prompt and the tokens that end a response or an action."""
    segments: tuple[Segment, ...] = ()
    """The same in parts; empty without an environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The result of a reward for one response."""

    correct: bool
    """Whether the response is right, from which accuracy is computed: ``is_equivalent(answer, response)`` of the
    paper."""
    reward: float
    """Reward before any length shaping; +1 or -1 under the rule of eq. 7."""
    score: float | None = None
    """The score by a user's reward, for dynamic sampling; None stands for 1 if the response is right, otherwise 0."""
    logs: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Values that a user's reward wants logged (``extra_logs``)."""
    answer: str | None = field(default=None, compare=False)
    """The answer found in the response, normalised: equal for answers that are the same text or number. None if there
    is no answer. It is left out when scores are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One scored response."""

    length: int
    truncated: bool
    cut: bool
    """Whether the response was cut, because its group held up a batch; such a response is never trained."""
    correct: bool
    reward: float
    """Reward after length shaping."""
    score: float | None = None
    """The same as in :class:`Score`."""
    observed: int = 0
    """Number of tokens that an environment put into the context, in addition to prompt and response."""


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
    version_tokens: tuple[int, ...] = ()
    """The same as in :class:`Generation`; empty where nobody has counted."""

    @property
    def accuracy(self) -> float:
        """Share of correct responses, 0 to 1."""
        return sum(rollout.correct for rollout in self.rollouts) / len(self.rollouts)

    @property
    def mean_score(self) -> float:
        """Mean of the scores that dynamic sampling uses; the accuracy, unless a user's reward gives other scores."""
        scores = [rollout.correct if rollout.score is None else rollout.score for rollout in self.rollouts]
        return sum(scores) / len(scores)

    @property
    def mean_reward(self) -> float:
        """Mean shaped reward."""
        return sum(rollout.reward for rollout in self.rollouts) / len(self.rollouts)

    @property
    def response_tokens(self) -> int:
        """Number of tokens in all responses together."""
        return sum(rollout.length for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class FilterDecision:
    """The decision of the dynamic-sampling filter on a group; ``reason`` is also the name of the counter it adds to."""

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
        """Policy age of each group: the trainer's version minus the group's oldest version."""
        return tuple(self.version - group.oldest_version for group in self.groups)

    @property
    def token_ages(self) -> tuple[int, ...]:
        """Number of response tokens of each age from 0: the trainer's version minus the one that sampled the token."""
        tokens = Counter[int]()
        for group in self.groups:
            for version, count in enumerate(group.version_tokens, start=group.oldest_version):
                tokens[self.version - version] += count
        return tuple(tokens[age] for age in range(max(tokens, default=-1) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something a worker did, on the clock that all machines share."""

    worker: str
    """Name of the worker: ``engine 0``, ``trainer 0``, ..."""
    kind: str
    """What was done: ``generate``, ``load_weights``; ``fetch``, ``old_logprobs``, ``ref_logprobs``, ``values``,
    ``update``, ``update_critic``, ``export_weights``, ``save``."""
    start: float
    """Start of the span, Unix time in seconds."""
    end: float

    @property
    def seconds(self) -> float:
        """Duration of the span in seconds."""
        return self.end - self.start
