"""One row of numbers per rollout step, computed from events and from nothing else (layer 2)."""

from __future__ import annotations

from collections import Counter

from dapo_openrlhf.events import (
    BatchTaken,
    Evaluated,
    Event,
    GroupFailed,
    GroupGenerated,
    GroupJudged,
    PublicationLive,
    StepTrained,
)

Row = dict[str, float]

METRICS = {
    "reward": "mean shaped reward of the trained groups",
    "accuracy": "share of right answers among all groups judged since the last step, filtered ones included; "
    "absent where none was judged",
    "batch_accuracy": "share of right answers in the trained groups",
    "groups/kept": "groups kept since the last step",
    "groups/all_right": "groups dropped since the last step because every answer was right",
    "groups/all_wrong": "groups dropped since the last step because every answer was wrong",
    "groups/failed": "groups that failed since the last step",
    "pass_rate": "kept groups over judged groups, 0 to 1; absent where none was judged",
    "policy_age/mean": "mean policy age of the trained groups, in versions",
    "policy_age/max": "largest policy age of the trained groups, in versions",
    "response_length/mean": "mean response length of the trained groups, in tokens",
    "response_length/max": "longest trained response, in tokens",
    "truncated_share": "share of the trained groups' responses that were truncated",
    "entropy": "mean entropy of the policy per trained token, in nats",
    "token_probability": "mean probability of the trained tokens under the policy",
    "loss": "policy loss, mean over the step's updates",
    "grad_norm": "gradient norm before clipping, mean over the step's updates",
    "lr": "learning rate",
    "clip_fraction": "share of trained tokens whose loss clipping decided",
    "is_weight/mean": "mean importance weight old/rollout",
    "is_weight/outside": "share of trained tokens whose weight is outside the threshold",
    "is_weight/ess": "effective sample size of the weights over their number, 0 to 1",
    "rollout_kl": "estimate of KL(rollout || old) per trained token, in nats",
    "tokens_per_second/generated": "response tokens generated per second",
    "tokens_per_second/kept": "response tokens of kept groups per second",
    "tokens_per_second/trained": "response tokens of trained groups per second",
    "seconds/step": "seconds since the last step ended",
    "seconds/wait_batch": "seconds the trainer waited for its batch",
    "seconds/train": "seconds in the trainer",
    "seconds/publish": "seconds from reading the last published weights to their being live in every engine",
    "eval/accuracy": "held-out accuracy, on steps where it was measured",
}
"""Every name a row may have, with what it means. Further statistics of the trainer appear under their own names."""


class StepMetrics:
    """Collects events between two steps and turns them into a row."""

    def __init__(self, *, started: float) -> None:
        """``started`` is the time from which the first step's seconds count, on the event log's clock."""
        self._since = started
        self._reset()

    def _reset(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._accuracy = 0.0
        self._tokens: Counter[str] = Counter()
        self._values: Row = {}

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case GroupGenerated():
                self._tokens["generated"] += event.response_tokens
            case GroupJudged():
                self._reasons[event.reason] += 1
                self._accuracy += event.accuracy
                self._tokens["kept"] += event.response_tokens if event.keep else 0
            case GroupFailed():
                self._reasons["failed"] += 1
            case BatchTaken():
                self._take(event)
            case StepTrained():
                self._values["seconds/train"] = event.seconds
                self._values |= event.statistics
            case PublicationLive():
                self._values["seconds/publish"] = event.seconds
            case Evaluated():
                self._values["eval/accuracy"] = event.accuracy

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
            "seconds/wait_batch": event.waited,
        }

    def row(self, *, now: float) -> Row:
        """The step's row; starts the next step at ``now``."""
        seconds = max(now - self._since, 1e-9)
        judged = self._reasons.total() - self._reasons["failed"]
        shares = {"accuracy": self._accuracy / judged, "pass_rate": self._reasons["kept"] / judged} if judged else {}
        row = {
            **shares,
            "seconds/step": seconds,
            **{
                f"groups/{reason}": float(self._reasons[reason])
                for reason in ("kept", "all_right", "all_wrong", "failed")
            },
            **{f"tokens_per_second/{kind}": self._tokens[kind] / seconds for kind in ("generated", "kept", "trained")},
            **self._values,
        }
        self._since = now
        self._reset()
        return row
