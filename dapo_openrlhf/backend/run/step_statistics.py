"""What all ranks report of a rollout step, as the metrics of that step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from dapo_openrlhf.backend.trainer.actor import StepReport
from dapo_openrlhf.pipeline.agreement import FRESH_KL

_PER_TOKEN = {
    "entropy": "entropy",
    "token_probability": "token_probability",
    "clip_fraction": "clip_fraction",
    "ratio": "ratio",
    "kl": "kl",
    "is_weight": "is_weight/mean",
    "is_outside": "is_weight/outside",
    "rollout_kl": "rollout_kl",
}


def step_statistics(reports: Sequence[StepReport]) -> dict[str, float]:
    """Sums over ranks as means per trained token, and what all ranks agree on; only that where no update was done."""
    outcomes = reports[0].outcomes
    updates = sum(not outcome.not_finite for outcome in outcomes)
    skipped = {
        "updates/bad": float(sum(outcome.bad for outcome in outcomes)),
        "updates/overflow": float(sum(outcome.overflow for outcome in outcomes)),
    }
    if not updates:
        return skipped | dict(reports[0].values)
    sums: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        for name, value in report.sums.items():
            sums[name] += value
    tokens = max(sums["tokens"], 1.0)
    statistics = {shown: sums[name] / tokens for name, shown in _PER_TOKEN.items() if name in sums}
    statistics["is_weight/ess"] = sums["is_weight"] ** 2 / max(sums["is_weight_squared"] * tokens, 1e-12)
    statistics["loss"] = sums["loss"] / updates
    if sums["fresh_tokens"]:
        statistics[FRESH_KL] = sums["fresh_kl"] / sums["fresh_tokens"]
    if "value_loss" in sums:
        statistics["value_loss"] = sums["value_loss"] / updates
        statistics["value"] = sums["value"] / tokens
        statistics["explained_variance"] = _explained_variance(sums, tokens)
    return statistics | skipped | dict(reports[0].values)


def _explained_variance(sums: Mapping[str, float], tokens: float) -> float:
    """Share of the returns' variance that the values explain: 1 - Var(return - value) / Var(return), at most 1."""
    variance = sums["return_squared"] / tokens - (sums["return"] / tokens) ** 2
    unexplained = sums["value_error_squared"] / tokens - (sums["value_error"] / tokens) ** 2
    return 1 - unexplained / max(variance, 1e-12)
