"""Everything that happens in a run, as typed events: the single source of metrics, logs and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.evaluation import Evaluation
from dapo_openrlhf.types import PolicyVersion, Span

UNWRITTEN = "unwritten"
"""Key in the metadata of a field that listeners get, and that is not in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. Durations are in seconds, lengths in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    unix_time: float
    """When the log's time was 0: what worker spans are aligned by."""
    engines: int
    trainer_ranks: int
    devices: int
    """Engines times their tensor-parallel size, and trainer ranks."""
    max_staleness: int
    batch_size: int
    first_step: int
    """Rollout steps done before; a resumed run begins a new log in the same file, with times from 0 again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpans(Event):
    """What engines or trainer ranks did since they last reported."""

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """One round of the train loop; its laps add up to the time since the last one."""

    step: int
    laps: Mapping[str, float]
    """Seconds by what the loop did: ``wait_batch``, ``train``, ``wait_live``, ``send``, ``evaluate``, ``save``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDispatched(Event):
    group: int
    prompt: int
    version: PolicyVersion
    """Live version at dispatch."""
    deadline: int
    """Last trainer version that may take the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGenerated(Event):
    group: int
    engine: int
    seconds: float
    response_tokens: int
    responses: int
    truncated: int
    """Responses that reached the length limit; those that were cut at a deadline are none of them."""
    oldest_version: PolicyVersion
    newest_version: PolicyVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupJudged(Event):
    group: int
    keep: bool
    reason: str
    accuracy: float
    reward: float
    response_tokens: int
    seconds: float
    """Spent scoring."""
    logs: Mapping[str, float] = field(default_factory=dict)
    """What a reward of the user's wants logged, means over the responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFailed(Event):
    group: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDropped(Event):
    """The prompt itself is at fault, and is given out no more; its group has failed."""

    prompt: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCut(Event):
    """The group held up a batch at its deadline: its unfinished responses end where they are."""

    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSurplus(Event):
    """Over-sampling made the group in vain; it was in flight, or judged and kept before."""

    group: int
    response_tokens: int
    """Of a finished group; 0 for one in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost(Event):
    engine: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReplaced(Event):
    """A new engine generates in the place of a lost one, with the newest weights."""

    engine: int
    times: int
    """How often this engine has been replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTaken(Event):
    step: int
    version: PolicyVersion
    groups: tuple[int, ...]
    ages: tuple[int, ...]
    waited: float
    reward: float
    """Mean shaped reward."""
    accuracy: float
    responses: int
    response_tokens: int
    longest_response: int
    truncated: int
    """Responses that a limit stopped, or a cut."""
    cut: int
    """Responses that were cut at their group's deadline."""
    cut_tokens: int
    """Tokens of those."""
    in_flight: int
    """Groups between dispatch and the filter's decision, after the batch was taken."""
    ready: int
    """Kept groups left in the queue."""
    free_slots: int
    over_sampled: int
    """Groups beyond the slots: in flight + ready + training + free = slots + over-sampled."""
    training_slots: int
    """Slots of batches taken, this one included, whose weights are not live yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrained(Event):
    step: int
    seconds: float
    statistics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSkipped(Event):
    """An update had numbers that are not finite, and was stopped before the optimizer saw it."""

    step: int
    update: int
    """Index in the step, from 0."""
    not_finite: Mapping[str, int]
    """How many numbers were not finite, by name."""
    in_a_row: int
    """Such updates one after the other, this one included."""
    path: str
    """Folder with its batch; empty if that could not be written, for the reason in ``problem``."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationLive(Event):
    version: PolicyVersion
    seconds: float
    bytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    step: int
    version: PolicyVersion
    accuracy: float
    """avg@n over the judged responses."""
    problems: int
    responses: int
    errors: int = 0
    """Responses that could not be generated or judged."""
    estimates: Mapping[str, float] = field(default_factory=dict)
    """``avg@n``, ``pass@k``, ``maj@k``."""
    seconds: float
    measured: Evaluation | None = field(default=None, compare=False, repr=False, metadata={UNWRITTEN: True})
    """Every response; None in an event that was read from a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed(Event):
    step: int
    path: str
    seconds: float
