"""Everything that happens in a run, as typed events: the single source of metrics, logs and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dapo_openrlhf.pipeline.evaluation import Evaluations
from dapo_openrlhf.types import PolicyVersion, Span

UNWRITTEN = "unwritten"
"""Key in the metadata of a field that listeners get, but that is not written to the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. Durations are in seconds, lengths in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    unix_time: float
    """Unix time at which the log's time was 0; worker spans are aligned by it."""
    engines: int
    trainer_ranks: int
    devices: int
    """Number of devices: engines times their tensor-parallel size, and trainer ranks."""
    max_staleness: int
    batch_size: int
    first_step: int
    """Number of rollout steps done before; a resumed run begins a new log in the same file, with times from 0 again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpans(Event):
    """The spans of engines or trainer ranks since their last report."""

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """One round of the train loop; its laps add up to the time since the last one."""

    step: int
    laps: Mapping[str, float]
    """Seconds of each lap by its name: ``wait_batch``, ``train``, ``wait_live``, ``send``, ``evaluate``, ``save``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDispatched(Event):
    group: int
    prompt: int
    version: PolicyVersion
    """The version that was live at dispatch."""
    deadline: int
    """The last trainer version that may take the group."""
    reason: str = "in_turn"
    """Why it is this prompt: ``in_turn``; ``returned`` after a failure or as surplus; by a curriculum ``again`` or ``new``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGenerated(Event):
    group: int
    engine: int
    seconds: float
    response_tokens: int
    responses: int
    truncated: int
    """Number of responses that reached the length limit, without those that were cut at a deadline."""
    oldest_version: PolicyVersion
    newest_version: PolicyVersion
    prompt_tokens: int = 0
    """Length of the prompt; 0 in logs of earlier versions."""
    lengths: tuple[int, ...] = ()
    """Number of tokens in each response; empty in logs of earlier versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupJudged(Event):
    group: int
    keep: bool
    reason: str
    accuracy: float
    reward: float
    response_tokens: int
    seconds: float
    """Duration of the scoring."""
    logs: Mapping[str, float] = field(default_factory=dict)
    """Values that a user's reward wants logged, as means over the responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFailed(Event):
    group: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDropped(Event):
    """The prompt itself is at fault, and is not given out again; its group has failed."""

    prompt: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCut(Event):
    """The group held up a batch at its deadline, and its unfinished responses were truncated."""

    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSurplus(Event):
    """A group that over-sampling dispatched was not needed; it was in flight, or had been judged and kept."""

    group: int
    response_tokens: int
    """Number of response tokens of a finished group; 0 for one in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSilent(Event):
    """An engine does not answer, or does not end a step; it is still in service."""

    engine: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswers(Event):
    """An engine that was silent works again."""

    engine: int
    seconds: float
    """Duration of the silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost(Event):
    """An engine died, hangs or only fails, or a new one did not start; what it was doing is done again elsewhere."""

    engine: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReplaced(Event):
    """A new engine has taken the place of a lost one, with the newest weights."""

    engine: int
    times: int
    """How often this engine has been lost within an hour, for reasons other than a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGivenUp(Event):
    """An engine was lost more often within an hour than it may be replaced; the run goes on with the others, and tries it
    again when that is an hour ago."""

    engine: int
    left: int
    """Number of engines that are not given up."""
    message: str


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
    """Number of responses that were truncated, by a limit or a cut."""
    cut: int
    """Number of responses that were cut at their group's deadline."""
    cut_tokens: int
    """Number of tokens in the responses that were cut."""
    in_flight: int
    """Number of groups between dispatch and the filter's decision, after the batch was taken."""
    ready: int
    """Number of kept groups left in the queue."""
    free_slots: int
    over_sampled: int
    """Number of groups beyond the slots: in flight + ready + training + free = slots + over-sampled."""
    training_slots: int
    """Number of slots of the batches taken, this one included, whose weights are not live yet."""
    token_ages: tuple[int, ...] = ()
    """Number of response tokens of each age from 0; empty in logs of earlier versions."""


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
    """Index of the update in the step, from 0."""
    not_finite: Mapping[str, int]
    """How many numbers were not finite, by their names."""
    in_a_row: int
    """Number of such updates in a row, this one included."""
    path: str
    """Folder with the update's batch; empty if it could not be written, for the reason in ``problem``."""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound(Event):
    """The trainer was lost, and the run goes back to a checkpoint: what happened since then no longer counts.

    Groups in flight and in the queue are dropped, and their prompts begun anew.
    """

    from_step: int
    """Number of rollout steps that were done."""
    to_step: int
    """Number of rollout steps that the checkpoint holds; 0 without one."""
    restart: int
    """Number of new trainers within the last hour, this one included; 0 if there is none, since the run is asked to
    end."""
    max_restarts: int
    pause: float
    """Time before the new trainer is started."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerReplaced(Event):
    """A new trainer has taken the place of a lost one, and its weights are live in the engines."""

    step: int
    seconds: float
    """Time since the trainer was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationLive(Event):
    version: PolicyVersion
    seconds: float
    bytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEvaluated:
    """The figures of one set of an evaluation."""

    accuracy: float
    """avg@n over the judged responses."""
    problems: int
    responses: int
    errors: int = 0
    """Number of responses that could not be generated or judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    """An evaluation has ended. Of several sets the figures are the first one's."""

    step: int
    version: PolicyVersion
    accuracy: float
    """avg@n over the judged responses."""
    problems: int
    responses: int
    errors: int = 0
    """Number of responses that could not be generated or judged."""
    estimates: Mapping[str, float] = field(default_factory=dict)
    """Estimates by their names: ``avg@n``, ``pass@k``, ``maj@k``; of sets with names also ``NAME/pass@k`` and so on."""
    sets: Mapping[str, SetEvaluated] = field(default_factory=dict)
    """The sets that have names, in order; empty for a single one without."""
    seconds: float
    measured: Evaluations | None = field(default=None, compare=False, repr=False, metadata={UNWRITTEN: True})
    """The evaluation with every response; None in an event that was read from a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTaken(Event):
    """A checkpoint's contents were copied; training goes on while they are written."""

    step: int
    seconds: float
    """Time that training was held up, also by the previous checkpoint if that was not written yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed(Event):
    """A checkpoint, or the trained model, is complete."""

    step: int
    path: str
    seconds: float
    """Time since training was held up for it; for a checkpoint most of it is spent beside training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSampled(Event):
    """One response of a group that was scored in training; one of a few that each step shows."""

    prompt: int
    correct: bool
    reward: float
    """Before any length shaping."""
    prompt_text: str = field(default="", repr=False, metadata={UNWRITTEN: True})
    label: object = field(default=None, repr=False, metadata={UNWRITTEN: True})
    response: str = field(default="", repr=False, metadata={UNWRITTEN: True})
    answer: str | None = field(default=None, repr=False, metadata={UNWRITTEN: True})
    """The answer that was found in it."""
