"""One row of numbers per rollout step, computed from events alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Literal, NamedTuple

from dapo_openrlhf.pipeline.agreement import FRESH_KL
from dapo_openrlhf.pipeline.curriculum import AGAIN, NEW
from dapo_openrlhf.pipeline.dynamic_sampling import ALL_RIGHT, ALL_WRONG, KEPT
from dapo_openrlhf.pipeline.events import (
    BatchTaken,
    Checkpointed,
    Evaluated,
    Event,
    GroupCut,
    GroupDispatched,
    GroupFailed,
    GroupGenerated,
    GroupJudged,
    GroupSurplus,
    PromptDropped,
    PublicationLive,
    StepDone,
    StepTrained,
    WorkerSpans,
)
from dapo_openrlhf.pipeline.orders import IN_TURN
from dapo_openrlhf.types import Span

Row = dict[str, float]

WARM_UP_SHARE = 0.25
"""Share of a run's steps at the beginning that say little of the others, because the queue is filled in them."""

Unit = Literal[
    "groups",
    "nats per token",
    "number",
    "probability",
    "prompts",
    "reward",
    "seconds",
    "share",
    "slots",
    "tokens",
    "tokens per second",
    "tokens per second and device",
    "updates",
    "versions",
]
"""Units of what metrics count or measure. A share is 0 to 1; a number has no unit."""


class Metric(NamedTuple):
    """The unit and the meaning of a number in a row."""

    unit: Unit
    meaning: str


METRICS: Mapping[str, Metric] = {
    "reward": Metric("reward", "mean shaped reward of the trained groups"),
    "accuracy": Metric(
        "share",
        "share of right answers among all groups judged since the last step, filtered ones included; absent where none was judged",
    ),
    "batch_accuracy": Metric("share", "share of right answers in the trained groups"),
    "groups/kept": Metric("groups", "groups kept since the last step"),
    "groups/all_right": Metric("groups", "groups dropped since the last step because every answer was right"),
    "groups/all_wrong": Metric("groups", "groups dropped since the last step because every answer was wrong"),
    "groups/failed": Metric("groups", "groups that failed since the last step"),
    "prompts/dropped": Metric(
        "prompts", "prompts dropped for good since the last step, because they are at fault themselves"
    ),
    "prompts/again": Metric(
        "prompts", "prompts drawn again out of turn since the last step, for their pass rates; absent without"
    ),
    "prompts/new": Metric(
        "prompts",
        "prompts drawn for the first time before their turn, for the pass rates of their length; absent without",
    ),
    "pass_rate/in_turn": Metric("share", "kept groups over judged groups of prompts drawn in turn; absent without"),
    "pass_rate/again": Metric("share", "the same of prompts drawn again for their pass rates; absent without"),
    "pass_rate/new": Metric("share", "the same of prompts drawn before their turn; absent without"),
    "groups/surplus": Metric("groups", "groups that over-sampling made in vain, since the last step"),
    "groups/cut": Metric("groups", "groups cut at their deadline since the last step"),
    "reward_errors": Metric(
        "share",
        "groups that could not be scored, or whose environment failed, over those and the judged ones, since the last step; "
        "0 without any",
    ),
    "pass_rate": Metric("share", "kept groups over judged groups; absent where none was judged"),
    "policy_age/mean": Metric("versions", "mean policy age of the trained groups"),
    "policy_age/max": Metric("versions", "largest policy age of the trained groups"),
    "policy_age/token_mean": Metric(
        "versions", "mean age of the trained groups' response tokens, each counted from the version that sampled it"
    ),
    "stale_token_share": Metric(
        "share", "share of the trained groups' response tokens that older weights than the step's sampled: age over 0"
    ),
    "response_length/mean": Metric("tokens", "mean response length of the trained groups"),
    "response_length/max": Metric("tokens", "longest trained response"),
    "truncated_share": Metric("share", "share of the trained groups' responses that were truncated"),
    "cut_share": Metric("share", "share of the trained groups' responses that were cut at their deadline"),
    "cut_length_ratio": Metric(
        "number", "mean length of those over that of the other responses: what cutting takes off; absent without"
    ),
    "entropy": Metric("nats per token", "mean entropy of the policy per trained token"),
    "token_probability": Metric("probability", "mean probability of the trained tokens under the policy"),
    "loss": Metric("number", "policy loss, mean over the step's updates"),
    "grad_norm": Metric("number", "gradient norm before clipping, mean over the step's updates"),
    "updates/bad": Metric("updates", "updates of the step that were stopped because a number was not finite"),
    "updates/overflow": Metric("updates", "updates of the step that were left out for a smaller loss scale; with fp16"),
    "lr": Metric("number", "learning rate of the step's last update"),
    "updates/empty": Metric("updates", "the step's updates that trained not a single token"),
    "clip_fraction": Metric("share", "share of trained tokens whose loss clipping decided"),
    "ratio": Metric("number", "mean ratio of the policy to the old one; 1 while a step has had one update"),
    "kl": Metric("nats per token", "estimate of KL(policy || reference) per trained token; with a reference model"),
    "aux_loss": Metric(
        "number", "load-balancing loss of a mixture of experts, mean over the step's updates; with actor.aux_loss_coef"
    ),
    "value_loss": Metric("number", "critic's loss, mean over the step's updates; with a critic"),
    "value": Metric("reward", "mean value of the trained tokens before the step; with a critic"),
    "explained_variance": Metric(
        "number", "share of the returns' variance that the values explained, at most 1; with a critic"
    ),
    "critic_grad_norm": Metric(
        "number", "critic's gradient norm before clipping, mean over the step's updates; with a critic"
    ),
    "is_weight/mean": Metric("number", "mean importance weight old/rollout"),
    "is_weight/outside": Metric("share", "share of trained tokens whose weight is outside the threshold"),
    "is_weight/ess": Metric("share", "effective sample size of the weights over their number"),
    "rollout_kl": Metric("nats per token", "estimate of KL(rollout || old) per trained token"),
    FRESH_KL: Metric(
        "nats per token", "the same over responses that the step's own weights sampled, at policy age 0; absent without"
    ),
    "tokens_per_second/generated": Metric("tokens per second", "response tokens generated per second"),
    "tokens_per_second/kept": Metric("tokens per second", "response tokens of kept groups per second"),
    "tokens_per_second/trained": Metric("tokens per second", "response tokens of trained groups per second"),
    "tokens_per_second/surplus": Metric(
        "tokens per second", "response tokens of kept groups per second that over-sampling made in vain"
    ),
    "tokens_per_device_second/generated": Metric(
        "tokens per second and device", "the same per second and device, engines and trainer ranks together"
    ),
    "tokens_per_device_second/kept": Metric("tokens per second and device", "the same per second and device"),
    "tokens_per_device_second/trained": Metric("tokens per second and device", "the same per second and device"),
    "queue/in_flight": Metric("groups", "groups between dispatch and the filter's decision when the batch was taken"),
    "queue/ready": Metric("groups", "kept groups left when the batch was taken"),
    "queue/training": Metric("slots", "slots of batches taken and not live yet when the batch was taken"),
    "queue/free": Metric("slots", "free slots when the batch was taken"),
    "queue/over_sampled": Metric("groups", "groups beyond the slots; taken off the four above, all slots are left"),
    "idle_share/engines": Metric("share", "share of the engines' time without work between their last two reports"),
    "idle_share/trainer": Metric(
        "share", "share of the trainer ranks' time without work between their last two reports"
    ),
    "idle_seconds/engines": Metric("seconds", "time without work between their last two reports, mean over engines"),
    "idle_seconds/trainer": Metric(
        "seconds", "time without work between their last two reports, mean over trainer ranks"
    ),
    "trainer/restarts": Metric(
        "number", "how often the trainer was lost and the run went back to a checkpoint, so far; absent until then"
    ),
    "seconds/engines_paused": Metric("seconds", "time the engines stood still for the last weights, mean over engines"),
    "seconds/step": Metric("seconds", "time since the last step ended: the sum of the following six"),
    "seconds/wait_batch": Metric("seconds", "time the train loop waited for its batch"),
    "seconds/train": Metric("seconds", "time in the trainer"),
    "seconds/wait_live": Metric("seconds", "time the train loop waited for the previous weights to be live"),
    "seconds/send": Metric("seconds", "time reading the trainer's weights"),
    "seconds/evaluate": Metric("seconds", "time the train loop waited for an evaluation"),
    "seconds/save": Metric("seconds", "time the train loop was held up by checkpoints"),
    "seconds/publish": Metric(
        "seconds", "time from reading the last published weights to their being live in every engine"
    ),
    "seconds/checkpoint": Metric(
        "seconds", "time from the beginning of a checkpoint until it was complete, on steps in which one was completed"
    ),
    "eval/accuracy": Metric(
        "share", "held-out accuracy, of several sets the first one's, on steps in which a measurement ended"
    ),
}
"""Every name a row may have, with its unit and meaning. Further statistics of the trainer appear under their own names,
``reward/NAME`` is the mean of what a reward returned as ``extra_logs[NAME]`` over the groups judged since the last
step, and ``policy_age/0``, ``policy_age/1``, ... count the trained groups of each age."""

LAPS = ("wait_batch", "train", "wait_live", "send", "evaluate", "save")


class StepMetrics:
    """Collects events between two steps and turns them into a row."""

    def __init__(self, *, started: float, devices: int = 1, restarts: int = 0) -> None:
        """``started`` is the time from which the first step's seconds count, on the event log's clock.

        ``restarts``: how often the run has gone back to a checkpoint.
        """
        self._since = started
        self._restarts = {"trainer/restarts": float(restarts)} if restarts else {}
        self._devices = devices
        self._reported: dict[str, float] = {}  # worker -> end of what it has reported, Unix time
        self._reason_of: dict[int, str] = {}  # by group
        self._reset()

    def _reset(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._accuracy = 0.0
        self._drawn: Counter[str] = Counter()  # prompts, by reason
        self._judged: Counter[str] = Counter()  # groups, by their prompts' reason
        self._kept: Counter[str] = Counter()
        self._unscored = 0
        self._tokens: Counter[str] = Counter()
        self._values: Row = {}
        self._logs: dict[str, list[float]] = {}

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case GroupDispatched():
                self._drawn[event.reason] += 1
                self._reason_of[event.group] = event.reason
            case GroupGenerated():
                self._tokens["generated"] += event.response_tokens
            case GroupJudged():
                self._reasons[event.reason] += 1
                drawn = self._reason_of.pop(event.group, IN_TURN)
                self._judged[drawn] += 1
                self._kept[drawn] += event.keep
                self._accuracy += event.accuracy
                for name, value in event.logs.items():
                    self._logs.setdefault(name, []).append(value)
                self._tokens["kept"] += event.response_tokens if event.keep else 0
            case GroupFailed():
                self._reasons["failed"] += 1
                self._reason_of.pop(event.group, None)
                self._unscored += event.reason.startswith(("reward_", "environment_"))
            case PromptDropped():
                self._reasons["prompt"] += 1
            case GroupSurplus():
                self._reasons["surplus"] += 1
                self._reason_of.pop(event.group, None)
                self._tokens["surplus"] += event.response_tokens
            case GroupCut():
                self._reasons["cut"] += 1
            case BatchTaken():
                self._take(event)
            case StepTrained():
                self._values |= event.statistics
            case StepDone():
                self._values |= {f"seconds/{lap}": event.laps.get(lap, 0.0) for lap in LAPS}
            case WorkerSpans():
                self._add_spans(event.spans)
            case PublicationLive():
                self._values["seconds/publish"] = event.seconds
            case Evaluated():
                self._values["eval/accuracy"] = event.accuracy
                self._values |= {f"eval/{name}/accuracy": one.accuracy for name, one in event.sets.items()}
            case Checkpointed():
                self._values["seconds/checkpoint"] = event.seconds

    def _take(self, event: BatchTaken) -> None:
        self._tokens["trained"] += event.response_tokens
        self._values |= {
            "reward": event.reward,
            "batch_accuracy": event.accuracy,
            "policy_age/mean": sum(event.ages) / len(event.ages),
            "policy_age/max": max(event.ages),
            "response_length/mean": event.response_tokens / event.responses,
            "response_length/max": event.longest_response,
            "truncated_share": event.truncated / event.responses,
            "cut_share": event.cut / event.responses,
            "queue/in_flight": event.in_flight,
            "queue/ready": event.ready,
            "queue/training": event.training_slots,
            "queue/free": event.free_slots,
            "queue/over_sampled": event.over_sampled,
            **{f"policy_age/{age}": float(count) for age, count in sorted(Counter(event.ages).items())},
        }
        if tokens := sum(event.token_ages):
            aged = sum(age * count for age, count in enumerate(event.token_ages))
            self._values |= {
                "policy_age/token_mean": aged / tokens,
                "stale_token_share": 1 - event.token_ages[0] / tokens,
            }
        if 0 < event.cut < event.responses:
            others = (event.response_tokens - event.cut_tokens) / (event.responses - event.cut)
            self._values["cut_length_ratio"] = event.cut_tokens / event.cut / others

    def _add_spans(self, spans: tuple[Span, ...]) -> None:
        """Add busy and idle time of the workers that report, each from the end of its last report to that of this."""
        for side in ("engines", "trainer"):
            prefix = side.removesuffix("s")
            mine = [span for span in spans if span.worker.startswith(prefix)]
            workers = {span.worker for span in mine}
            elapsed = 0.0
            for worker in workers:
                end = max(span.end for span in mine if span.worker == worker)
                begin = self._reported.get(worker, min(span.start for span in mine if span.worker == worker))
                self._reported[worker] = end
                elapsed += end - begin
            if elapsed > 0:
                idle = max(0.0, elapsed - sum(span.seconds for span in mine))
                self._values[f"idle_share/{side}"] = idle / elapsed
                self._values[f"idle_seconds/{side}"] = idle / len(workers)
            if paused := [span.seconds for span in mine if span.kind == "load_weights"]:
                self._values["seconds/engines_paused"] = sum(paused) / len(workers)

    def _by_difficulty(self) -> Row:
        """What a curriculum has drawn and what came of it; nothing without one."""
        drawn = {f"prompts/{reason}": float(self._drawn[reason]) for reason in (AGAIN, NEW) if self._drawn[reason]}
        if not drawn and not self._judged[AGAIN] + self._judged[NEW]:
            return {}
        return drawn | {
            f"pass_rate/{reason}": self._kept[reason] / self._judged[reason]
            for reason in (IN_TURN, AGAIN, NEW)
            if self._judged[reason]
        }

    def row(self, *, now: float) -> Row:
        """Return the step's row, and start the next step at ``now``."""
        seconds = max(now - self._since, 1e-9)
        judged = sum(self._reasons[reason] for reason in (KEPT, ALL_RIGHT, ALL_WRONG))
        shares = {"accuracy": self._accuracy / judged, "pass_rate": self._reasons["kept"] / judged} if judged else {}
        row = {
            **shares,
            **self._by_difficulty(),
            **self._restarts,
            "seconds/step": seconds,
            "prompts/dropped": float(self._reasons["prompt"]),
            "reward_errors": self._unscored / max(judged + self._unscored, 1),
            **{
                f"groups/{reason}": float(self._reasons[reason])
                for reason in (KEPT, ALL_RIGHT, ALL_WRONG, "failed", "surplus", "cut")
            },
            **{
                f"tokens_per_second/{kind}": self._tokens[kind] / seconds
                for kind in ("generated", "kept", "trained", "surplus")
            },
            **{
                f"tokens_per_device_second/{kind}": self._tokens[kind] / seconds / self._devices
                for kind in ("generated", "kept", "trained")
            },
            **{f"reward/{name}": fmean(values) for name, values in self._logs.items()},
            **self._values,
        }
        self._since = now
        self._reset()
        return row
